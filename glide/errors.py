"""Exceptions that glide raises on purpose. Each message gives the problem, the place of the problem, and the next step.

GlideError
├── InputError          the user's input is wrong; nothing was submitted (exit code 2)
├── CondorError         HTCondor is missing, refuses a request, or does not answer
│   └── CondorRefused   HTCondor answers, but refuses or holds a job
├── TemplateError       a model could not be loaded on a node
└── InvocationError     a call failed on its node, and the exception that the call raised cannot be sent back
"""

import os


class GlideError(Exception):
    """Base class of all errors that glide raises on purpose."""


def describe_bug(error: Exception) -> str:
    """Return one line of text that names an unexpected exception, and the source line that raised it.

    Code that must continue after a bug in glide reports the bug with this text.
    """
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f" ({os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno})" if place else ""
    return " ".join(f"an error in glide: {type(error).__name__}: {error}{where}".split())


class InputError(GlideError):
    """The user's input has one or more problems.

    Attributes:
        problems: one line for each problem, with the file, the place in the file, and the fix.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class CondorError(GlideError):
    """HTCondor is missing, refuses a request, or does not answer."""


class CondorRefused(CondorError):
    """HTCondor answers, but refuses or holds a job. Waiting does not help; somebody must act."""


class TemplateError(GlideError):
    """A template could not be loaded on a node. The message is the reason that the node gave."""


class InvocationError(GlideError):
    """A call failed on its node.

    Attributes:
        type: name of the exception's class on the node. The name is EngineDied if the engine died during the call, and
            RecordTimeout if the call took too long.
    """

    def __init__(self, type: str, message: str):
        super().__init__(f"{type}: {message}")
        self.type = type


def os_reason(error: OSError) -> str:
    """Return what has failed: the file and the system's reason, or the error's own text if it names no file."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
