"""The model in a sweep file, and how to load it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationInfo, field_validator, model_validator

from glide.config.reading import Integer, Name, Number, Strict
from glide.programs import PROGRAMS
from glide.server.engines import engine_class
from glide.server.engines.openai import KEY_FILE_REFUSED
from glide.template.spec import Keep
from glide.vocabulary import State

PHASES = {
    "fetch": State.FETCHING, "import": State.IMPORTING, "load": State.LOADING, "warm": State.WARMING,
    "serve": State.WARM,
}  # fmt: skip


def checked_options(engine: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of an engine, converted to the types that the engine expects.

    Raises:
        ValueError: the engine does not have an option, or a value has a wrong type.
    """
    known = engine_class(engine).Options
    names = sorted(known.__dataclass_fields__)
    for key in options:
        if key not in names:
            raise ValueError(f"{engine} has no option {key!r}; use {', '.join(names)}")
    checked = TypeAdapter(known).validate_python(options)
    return {key: getattr(checked, key) for key in options}


class NeedsSpec(Strict):
    """The resources that a model needs on a node.

    You need not set all of them. glide itself compares the size of the model's files with the memory. If `gpus` is 0,
    glide reads the number of GPUs from a program's arguments, such as `--tensor-parallel-size`.

    Attributes:
        gpus: number of GPUs.
        gpu_memory: memory of each GPU in MB.
        capability: minimum CUDA compute capability of the GPUs, such as 8.0. Glideins for the model require it.
        cpus: number of CPU cores.
        memory: main memory in MB.
    """

    gpus: Integer = Field(0, ge=0)
    gpu_memory: Integer = Field(0, ge=0)
    capability: Number = Field(0.0, ge=0)
    cpus: Integer = Field(0, ge=0)
    memory: Integer = Field(0, ge=0)


class ModelSpec(Strict):
    """The model of a sweep, and how to load it.

    Attributes:
        name: name of the model, which lanes advertise as GlideModel.
        engine: engine that runs the model. `transformers` loads the model on the node. `server` starts a program on
            the node, such as vLLM or llama.cpp, which loads the model. `openai` is for a model that a service outside
            the pool serves. `noop` is a fake engine that takes a known time.
        path: folder of the model, relative to the sweep file, or address of the model (hf://, https:// or osdf://). The
            files have the Hugging Face format, or the GGUF format for llama.cpp.
        files: patterns of the files to load, if the folder or repository has more than one model, such as
            `"*Q4_K_M.gguf"`. It is one text or a list. By default all files that an engine needs.
        token: file with an access token of the model hub, for gated and private repositories. No other account may be
            able to read this file. The access point downloads the files with the token. Nodes get the files from the
            access point, and never get the token. The loaded model serves only your own jobs.
        keep: part of the model that stays on a node after a job. `state` keeps the loaded model. `files` keeps only the
            files, so that each job loads the model. `nothing` also deletes fetched files, so that each job fetches them
            again. Use `files` and `nothing` only to measure the benefit of kept state. They need `lanes: 1` in the site
            file. With more lanes, two jobs could run at the same time and share the loaded model.
        environment: environment in which the engine runs. It is a packed venv or conda environment, an Apptainer image,
            or a folder that the nodes have. By default the environment of the entry, or the nodes' own Python if the
            entry has no environment.
        needs: resources that the model needs on a node. The factory uses only entries that have them.
        options: options of the engine.
        budgets: time limit of each phase of a model server, in seconds. If a phase takes longer, it has failed. By
            default fetch 7200, import 900, load 3600, warm 1800 and serve 300. The limit `serve` is the time within
            which a warm engine must begin a call that it has received.
    """

    name: Name
    engine: str
    path: str | None = None
    files: str | list[str] | None = None
    token: str | None = None
    keep: Keep = "state"
    environment: str | None = None
    needs: NeedsSpec = NeedsSpec()
    # An engine may require an option. So if a sweep file has no `options`, pydantic checks the default, an empty dict.
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    budgets: dict[Literal["fetch", "import", "load", "warm", "serve"], Annotated[Number, Field(gt=0)]] = Field(
        default_factory=dict
    )

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, engine: str) -> str:
        engine_class(engine)
        if engine == "python":
            raise ValueError("the python engine is only for glide.Session; use noop, openai, server or transformers")
        return engine

    @field_validator("options")
    @classmethod
    def _checked_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Convert the options to the types that the engine expects. A number in quotes becomes a number."""
        engine = info.data.get("engine")
        if engine is None:  # the engine's name was invalid, and this has been reported
            return options
        if engine == "openai" and "key_file" in options:
            raise ValueError(f"{KEY_FILE_REFUSED}; remove it, and ask the site's admin for an entry with that service")
        return checked_options(engine, options)

    @property
    def patterns(self) -> list[str]:
        """The patterns in `files` as a list."""
        return [self.files] if isinstance(self.files, str) else self.files or []

    @model_validator(mode="after")
    def _has_a_path(self) -> ModelSpec:
        if self.token is not None and not (self.path or "").startswith("hf://"):
            raise ValueError("`token` is only for a repository of the model hub (path: hf://ORGANISATION/NAME)")
        if self.files is not None and self.path is None:
            raise ValueError("`files` needs a path; name the model's folder or its address")
        program = PROGRAMS.get(str(self.options.get("program")))
        command = str(self.options.get("command"))
        if self.path is None and (
            self.engine == "transformers"
            or (self.engine == "server" and (program or "{path}" in command or "{file}" in command))
        ):
            raise ValueError(f"the {self.engine} engine needs a path; name the model's folder or its address")
        return self
