"""glide batch: compute a file of requests for OpenAI's Batch API, without a sweep file."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from glide.cli.options import AsJson
from glide.cli.sweep import run_sweep
from glide.errors import InputError
from glide.sweep.out import ERRORS, OUTPUT
from glide.sweep.results import Results
from glide.system import publish, publishing

Input = Annotated[Path, typer.Option("-i", "--input", help="A file, a folder or a pattern with the requests.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="File for the answers.")]
Model = Annotated[str, typer.Option("--model", help="Folder of the model, or its address (hf://ORG/NAME).")]
Site = Annotated[Path | None, typer.Option("--site", help="A site file: run a factory for it while the batch runs.")]


def batch(
    input: Input,
    output: Output,
    model: Model = "",
    engine: Annotated[str, typer.Option("--engine", help="The engine that runs the model.")] = "transformers",
    glideins: Annotated[int, typer.Option("--glideins", min=1, help="How many glideins may run at once.")] = 1,
    site: Site = None,
    as_json: AsJson = False,
) -> None:
    """Compute requests in the format of OpenAI's Batch API. Example: glide batch -i in.jsonl -o out.jsonl --model m

    Each line of the input is a request for /v1/chat/completions, /v1/completions or /v1/embeddings. All requests go to
    the given model, whatever model they name. Successful answers are written to the output. Errors are written to a
    file beside it: for out.jsonl, this file is out.errors.jsonl.

    The folder OUTPUT.glide keeps the results. If the command is interrupted, run it again: it computes only what is
    missing. `glide sweep status OUTPUT.glide/sweep.yaml` shows the progress.

    Exit 0: every request has an answer. 3: some answers are errors. 2: the input is wrong, and nothing was submitted.
    """
    folder = output.absolute().with_name(f"{output.name}.glide")
    spec: dict[str, Any] = {"name": _name(model or engine), "engine": engine}
    if model:
        spec["path"] = model if "://" in model else str(Path(model).absolute())
    content = {
        "name": _name(output.stem), "model": spec, "records": str(input.absolute()), "format": "openai",
        "glideins": glideins, "out": {"folder": str(folder), "format": "openai"},
    }  # fmt: skip
    file = folder / "sweep.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        publish(file, yaml.safe_dump(content, sort_keys=False), 0o666)
    except OSError as error:
        problem = f"{error.filename or folder}: {error.strerror}"
        raise InputError(f"{problem}; --output must name a file that you can write") from None
    failed = output.with_name(f"{output.stem}.errors{output.suffix}")

    def copy_answers(models: list[Results]) -> None:
        (results,) = models
        _copy(folder / OUTPUT, output)
        if results.errors:
            _copy(folder / ERRORS, failed)
            print(f"{results.errors} errors: {failed}", file=sys.stderr)
        else:
            failed.unlink(missing_ok=True)

    run_sweep(file, site, as_json, finished=copy_answers)


def _name(text: str) -> str:
    """Return a name for a sweep or a model, made of the last part of a path."""
    last = re.split(r"[/\\]", text.rstrip("/"))[-1]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", last).lstrip("_.-")[:64] or "batch"


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, publishing(target, 0o666) as written:
        shutil.copyfileobj(read, written)
