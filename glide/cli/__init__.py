"""The command line: one file per noun. Here only what all of them share: errors, JSON, exit codes."""

from __future__ import annotations

import io
import signal
import sys
from importlib import import_module

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
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
