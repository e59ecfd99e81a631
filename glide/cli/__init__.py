"""The command line: one file per noun. Here only what all of them share: errors, JSON, exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import typer

from glide.errors import GlideError, InputError
from glide.vocabulary import Exit

# Where each is; imported when it is asked for, as all together take longer than most of them.
COMMANDS = {
    "pool": "pool", "factory": "factory", "site": "site", "sweep": "sweep", "template": "template",
    "submit": "submit", "gather": "submit", "status": "status", "web": "web", "bench": "bench",
    "simulate": "simulate", "doctor": "doctor",
}  # fmt: skip


def application(wanted: str = "") -> typer.Typer:
    """The commands: the one that is wanted, if it is one, else all."""
    app = typer.Typer(
        help="Warm models on preemptible GPUs, through HTCondor. Example: glide sweep run sweep.yaml",
        no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    )  # fmt: skip
    app.callback()(lambda: None)  # else a single command would be the program itself
    for name in [wanted] if wanted in COMMANDS else COMMANDS:
        module = import_module(f"glide.cli.{COMMANDS[name]}")
        if group := getattr(module, "app", None):
            app.add_typer(group, name=name)
        else:
            app.command(epilog=getattr(module, "EXIT_CODES", None))(getattr(module, name))
    return app


def main() -> None:
    """Entry point of `glide`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: not every locale has every character
    # A polite kill is an interrupt: what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        application(sys.argv[1] if len(sys.argv) > 1 else "")()
    except InputError as error:
        print("\n".join(f"glide: {problem}" for problem in error.problems), file=sys.stderr)
        sys.exit(Exit.INPUT)
    except GlideError as error:
        print(f"glide: {error}", file=sys.stderr)
        sys.exit(Exit.FAILED)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"glide: {_unusable(error)}", file=sys.stderr)
        sys.exit(Exit.INPUT)
    except UnicodeEncodeError as error:  # a file's name
        what = f"{error.object!r} cannot be written in this locale ({error.encoding})"
        print(f"glide: {what}; set LC_ALL=C.UTF-8", file=sys.stderr)
        sys.exit(Exit.INPUT)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def _unusable(error: OSError) -> str:
    """Say which file or folder cannot be used, and what names another one."""
    from glide.condor import home
    from glide.condor.install import cache_dir

    path = Path(os.fsdecode(error.filename))
    names = (("GLIDE_HOME", home()), ("XDG_CACHE_HOME", cache_dir()))
    fix = next((f"; set {name} to a folder that you can write" for name, ours in names if _within(path, ours)), "")
    return f"{path}: {error.strerror}{fix}"


def _within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder's, or one on the way there that could not be made."""
    return path.is_relative_to(folder) or (folder.is_relative_to(path) and path != Path("/"))
