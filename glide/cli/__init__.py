"""The command line of glide. This module imports the wanted command, and turns errors into messages and exit codes."""

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

# For each command: its module. Only the module of the wanted command is imported, because importing all modules takes
# longer than most commands take.
COMMANDS = {
    "pool": "pool", "factory": "factory", "site": "site", "sweep": "sweep", "batch": "batch", "template": "template",
    "submit": "submit", "gather": "submit", "serve": "serve", "status": "status", "web": "web", "bench": "bench",
    "simulate": "simulate", "doctor": "doctor",
}  # fmt: skip


def application(wanted: str = "") -> typer.Typer:
    """Return the typer application with one command, or with all commands.

    Args:
        wanted: name of the command. If no command has this name, the application has all commands.
    """
    app = typer.Typer(
        help="Run prompts through warm models on preemptible GPUs, with HTCondor. Example: glide sweep run sweep.yaml",
        no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    )  # fmt: skip
    app.callback()(lambda: None)  # with one command and no callback, typer does not accept the command's name
    for name in [wanted] if wanted in COMMANDS else COMMANDS:
        module = import_module(f"glide.cli.{COMMANDS[name]}")
        if group := getattr(module, "app", None):
            app.add_typer(group, name=name)
        else:
            app.command(epilog=getattr(module, "EXIT_CODES", None))(getattr(module, name))
    return app


def main() -> None:
    """Run the program `glide`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Output can have characters that the locale cannot encode. Escape these characters, as Python does on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Treat SIGTERM like Ctrl-C, so that a command stops what it has started.
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
        print(f"glide: {_describe_os_error(error)}", file=sys.stderr)
        sys.exit(Exit.INPUT)
    except UnicodeEncodeError as error:  # the name of a file has characters that the locale cannot encode
        what = f"{error.object!r} cannot be written in this locale ({error.encoding})"
        print(f"glide: {what}; set LC_ALL=C.UTF-8", file=sys.stderr)
        sys.exit(Exit.INPUT)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def _describe_os_error(error: OSError) -> str:
    """Return a message with the path, the cause and, if there is one, the variable to change, such as GLIDE_HOME."""
    from glide.condor import home
    from glide.condor.install import cache_dir

    path = Path(os.fsdecode(error.filename))
    folders = (("GLIDE_HOME", home()), ("XDG_CACHE_HOME", cache_dir()))
    fix = next((f"; set {name} to a folder that you can write" for name, own in folders if _concerns(path, own)), "")
    return f"{path}: {error.strerror}{fix}"


def _concerns(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder, or is a parent of the folder. For the path `/`, return False."""
    return path.is_relative_to(folder) or (folder.is_relative_to(path) and path != Path("/"))
