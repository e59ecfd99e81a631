"""Types of single values in a site file, with their checks."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from glide.config.reading import Line, Name
from glide.files.environment import REGISTRIES
from glide.programs import PROGRAMS

# A factory keeps files with these names in the folder of its site. Each entry has a folder there, too, with the entry's
# name. So no entry may have one of these names.
RESERVED_NAMES = (
    "accounts", "drained", "factory.log", "file", "journal.jsonl", "journal.jsonl.1", "lock", "peers", "seed",
    "usage", "users.lock", "while-used.lock",
)  # fmt: skip


def _is_absolute(name: str | None) -> str | None:
    """Accept only an absolute path, or the address of an image in a registry (docker://…).

    A relative path is refused, because it is not clear to which folder it is relative. A web address is refused,
    because the factory must not wait for a web server.
    """
    if name is None or name.startswith(("/", *REGISTRIES)):
        return name
    raise ValueError(
        f"{name} is not an absolute path; begin a path with /, or an image's address with {', '.join(REGISTRIES)}"
    )


def _is_not_reserved(name: str) -> str:
    """Refuse the name of an entry if the factory uses this name for a file in the site's folder."""
    if name in RESERVED_NAMES:
        raise ValueError(f"the factory has a file of its own called {name}; give the entry another name")
    return name


def _is_expression(requirements: str) -> str:
    """Check a ClassAd expression of one or more lines, and return it as one line, because a job file needs one line."""
    from glide.condor import bindings

    line = " ".join(requirements.split("\n")).strip()
    try:
        # The job file puts the expression in parentheses. A comment in the expression would hide the closing
        # parenthesis. So check the expression with parentheses, too.
        for text in (line, f"({line}) && true"):
            bindings.classad2.ExprTree(text)
    except (ValueError, RuntimeError, bindings.classad2.ClassAdException):
        raise ValueError(
            f"HTCondor cannot read {line!r}; check its operators and parentheses, and remove comments"
        ) from None
    if problem := next((each for each in line if each < " " or each == "\x7f"), ""):
        raise ValueError(f"remove the character {problem!r}")
    return line


AbsolutePath = Annotated[Line | None, AfterValidator(_is_absolute)]
EntryName = Annotated[Name, AfterValidator(_is_not_reserved)]
Requirements = Annotated[str, AfterValidator(_is_expression)]
User = Annotated[str, StringConstraints(pattern=r"^[^\s\"\\$\x00-\x1f\x7f-\x9f]+$")]
KnobName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
KnobValue = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]


def _is_program(name: str) -> str:
    if name not in PROGRAMS:
        raise ValueError(f"glide does not know the program {name}; choose {', '.join(PROGRAMS)}")
    return name


ProgramName = Annotated[str, AfterValidator(_is_program)]
