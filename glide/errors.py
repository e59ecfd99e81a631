"""What can go wrong, as a tree; every message says what, where, and what to do next.

GlideError
├── InputError        what the user wrote is wrong; nothing was submitted (exit code 2)
├── CondorError       HTCondor is missing, refuses, or does not answer
│   └── Refused       HTCondor answers, and refuses or holds a job
├── TemplateError     a model could not be loaded on a node
└── InvocationError   a call failed on its node, and its own exception cannot be brought back
"""

import os


class GlideError(Exception):
    """Base of every error glide raises on purpose."""


def mistake(error: Exception) -> str:
    """What is said of an error that glide raised on no purpose, where the rest goes on: what it is, and its place."""
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f" ({os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno})" if place else ""
    return " ".join(f"an error in glide: {type(error).__name__}: {error}{where}".split())


class InputError(GlideError):
    """One or more problems in what the user wrote, each a line naming file, place and fix."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class CondorError(GlideError):
    """HTCondor is missing, refuses, or does not answer."""


class Refused(CondorError):
    """HTCondor answers, and refuses a job or holds it: waiting alone does not help."""


class TemplateError(GlideError):
    """A template could not be materialised on a node; the message is the node's own reason."""


class InvocationError(GlideError):
    """A call failed on its node; `type` is the exception's name there, or EngineDied, or RecordTimeout."""

    def __init__(self, type: str, message: str):
        super().__init__(f"{type}: {message}")
        self.type = type
