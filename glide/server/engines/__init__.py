"""Engines. An engine loads a template as state in memory and serves records from that state.

An engine is a class that implements the protocol `Engine` (base.py). Each engine has its own module in this folder. To
add an engine, write the module, and add the engine's name and class to `engine_class`. To document the engine's
options, add the engine's name to ENGINES in docs/generate.py.

Each engine runs in its own process (glide.server.engine_process), which serves one template. The main thread of this
process calls the engine's methods, one at a time, in this order:

1. `build` creates the engine. `prepare` runs immediately after `build`. The template's files need not be on the node
   yet.
2. `load` runs when the files are on the node. `describe` runs once after `load`.
3. When a list of records arrives, `plan` divides the list into calls. `call` runs for each of these calls, in order.
   Then `describe` runs again. Step 3 repeats until the process ends. There is no method that closes an engine.

An error in step 1 or 2 ends the process. The template then fails on this glidein. The glidein reports the error as the
reason for this failure.

If one record causes an error in step 3, the engine need not catch the error. The process repeats the call with fewer
records, until the failing record is alone in its call. If a repeated call costs money, the engine should catch the
error, and return `Completion.failed` for the failing record.

Access points import an engine's module to check options, but may lack heavy packages such as torch. An engine's module
must therefore not import such packages at its top. Import them in `prepare`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glide.server.engines.base import (
    Completion,
    Engine,
    EngineRecord,
    Loadable,
    RecordError,
    RecordTimeout,
    UnknownOption,
    WrongOption,
    error_fields,
    printable,
)
from glide.template import Template

__all__ = [
    "Completion", "Engine", "EngineRecord", "Loadable", "RecordError", "RecordTimeout", "UnknownOption", "WrongOption",
    "build", "check_generate", "engine_class", "error_fields", "printable",
]  # fmt: skip


def engine_class(name: str) -> Any:
    """Return the class of an engine, without importing the packages that the engine needs to load a model.

    Args:
        name: the engine's name in templates.

    Raises:
        ValueError: no engine has this name; the message lists the names.
    """
    if name == "noop":
        from glide.server.engines.noop import Noop

        return Noop
    if name == "python":
        from glide.server.engines.python import Python

        return Python
    if name == "transformers":
        from glide.server.engines.transformers import Transformers

        return Transformers
    if name == "openai":
        from glide.server.engines.openai import OpenAI

        return OpenAI
    if name == "server":
        from glide.server.engines.server import Server

        return Server
    raise ValueError(f"no engine {name!r}; choose noop, openai, python, server or transformers")


def check_generate(engine: str, generate: Mapping[str, Any], folder: Path | None = None) -> None:
    """Check a sweep's options of `generate`. The access point calls this function before it submits jobs.

    Args:
        engine: the engine's name.
        generate: the options, with their names as keys.
        folder: the model's folder, from which some limits are read; None if this machine does not have the folder.

    Raises:
        UnknownOption: the engine does not have one of the options.
        WrongOption: an option has a value with which no record can be served.
        ValueError: no engine has this name.
    """
    check = getattr(engine_class(engine), "check_generate", None)  # the engines noop and python do not check options
    if check is not None:
        check(generate, folder)


def runs_in_environment(template: Template) -> bool:
    """Return whether the engine's own process runs in the template's environment.

    The server engine runs outside, because its environment may have no Python. Only its program runs inside.
    """
    return bool(template.service) or template.engine != "server"


def build(
    template: Template, prefix: Sequence[str] = (), python: str = sys.executable, compiled: str = "compiled"
) -> Loadable:
    """Create the engine that a template names, without loading the template.

    The site's entry may have added a `service` to the template. If so, create the openai engine with the service's
    options. The openai engine sends the records to a model that is served elsewhere.

    Args:
        prefix: words that start a command in the template's container; empty without a container.
        python: the Python of the template's environment.
        compiled: folder for code that programs compile for a model and a GPU.

    Raises:
        ValueError: no engine has this name, or an option has a value that cannot work.
        TypeError: the template sets an option that the engine does not have, or an option's value has a wrong type.
        TemplateError: the template sets an option that it must not set.
    """
    chosen = engine_class("openai" if template.service else template.engine)
    options = chosen.Options(**(template.service or template.options))
    if runs_in_environment(template):
        return chosen(template, options)
    return chosen(template, options, prefix, python, Path(compiled).absolute())
