"""The command line: one file per noun. Here only what all of them share: errors, JSON, exit codes."""

from __future__ import annotations

import signal
import sys

import typer

from glide.cli import factory, pool, site, submit, sweep, template
from glide.cli.bench import bench
from glide.cli.doctor import EXIT_CODES, doctor
from glide.cli.status import status
from glide.cli.web import web
from glide.errors import GlideError, InputError
from glide.vocabulary import Exit

app = typer.Typer(
    help="Warm models on preemptible GPUs, through HTCondor. Example: glide sweep run sweep.yaml",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
app.add_typer(pool.app, name="pool")
app.add_typer(factory.app, name="factory")
app.add_typer(site.app, name="site")
app.add_typer(sweep.app, name="sweep")
app.add_typer(template.app, name="template")
app.command()(submit.submit)
app.command()(submit.gather)
app.command()(status)
app.command()(web)
app.command()(bench)
app.command(epilog=EXIT_CODES)(doctor)


def main() -> None:
    """Entry point of `glide`."""
    # A polite kill is an interrupt: what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except InputError as error:
        print("\n".join(f"glide: {problem}" for problem in error.problems), file=sys.stderr)
        sys.exit(Exit.INPUT)
    except GlideError as error:
        print(f"glide: {error}", file=sys.stderr)
        sys.exit(Exit.FAILED)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
