"""Models of a sweep file, which describes the model, the records and the prompts of a sweep."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)  # fmt: skip

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


FIELD = re.compile(r"[^\W\d]\w*(?:[ -]+\w+)*")
BRACES = "write {{ and }} for braces"
# Names in a sweep's `out` folder: the summary file, and the folder of the report. `out` also contains a folder for each
# prompt or model. So no prompt may have the name SUMMARY, and no model may have the name SUMMARY or REPORT.
SUMMARY, REPORT = "summary.json", "report"


def prompt_fields(prompt: str) -> list[str]:
    """Return the names of the `{field}`s in a prompt.

    Raises:
        ValueError: a brace does not belong to a field and is not doubled.
    """
    try:
        pieces = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise ValueError(f"{error}; {BRACES}") from None
    names = []
    for _, name, form, conversion in pieces:
        if name is None:
            continue
        if form or conversion or not FIELD.fullmatch(name):
            raise ValueError(
                f"{{{name}}} is not the name of a field (a word, or words joined by ' ', '-' or '_'); {BRACES}"
            )
        names.append(name)
    return names


def _has_only_fields(prompt: str) -> str:
    prompt_fields(prompt)
    return prompt


def _is_not_the_summary(name: str) -> str:
    if name == SUMMARY:
        raise ValueError(f"the sweep's summary is the file {name}; choose another name")
    return name


def _is_not_the_report(name: str) -> str:
    if name == REPORT:
        raise ValueError(f"the folder {name} is for the sweep's report; give the model another name")
    return name


PromptName = Annotated[Name, AfterValidator(_is_not_the_summary)]
ModelName = Annotated[PromptName, AfterValidator(_is_not_the_report)]
PromptText = Annotated[str, AfterValidator(_has_only_fields)]
ONE_FIELD = re.compile(r"\{(.*)\}")


class Message(Strict):
    """A message of a prompt that is a chat.

    Attributes:
        role: who says the message, for example system, user or assistant.
        content: the text. `{field}` stands for a field of the record.
    """

    role: Name
    content: PromptText


@dataclass(frozen=True)
class Messages:
    """A prompt whose messages are in a field of the record.

    Attributes:
        field: name of the field.
    """

    field: str


# A prompt in a sweep file is a text or a list of messages. The discriminator selects one of these two types, so that
# pydantic checks the prompt only as this type. Without the discriminator, pydantic would report each error twice.
PromptValue = Annotated[
    Annotated[PromptText, Tag("text")] | Annotated[list[Message], Field(min_length=1), Tag("messages")],
    Discriminator(lambda value: "messages" if isinstance(value, list) else "text"),
]
# A prompt of a sweep: a text, a list of messages, or the name of a field that holds messages.
Prompt = str | list[Message] | Messages
OutFormat = Literal["jsonl", "openai", "parquet"]


class OutSpec(Strict):
    """Where and how the results of a sweep are written.

    Attributes:
        folder: folder for the results, relative to the working directory.
        format: further files that are written when the sweep has finished. `jsonl` adds no file. `openai` adds
            output.jsonl and errors.jsonl in the format of OpenAI's Batch API. `parquet` adds results.parquet.
    """

    folder: str = "results"
    format: OutFormat = "jsonl"


class SweepFile(Strict):
    """A sweep, which runs each record with each prompt.

    Attributes:
        name: name of the sweep, for its jobs and its report.
        model: model to load.
        models: names and models, in place of `model`. A result is computed with each model. A model's own `name` may be
            left out.
        records: file with the records, relative to the sweep file. It may also be a folder of files, or a pattern such
            as `shards/*.jsonl.gz`. Each line is a JSON object, whose `custom_id` is a unique text. A file may also be
            a JSON array, or CSV, TSV or Parquet. All these files may be compressed (.gz or .zst). Folders that the
            library `datasets` has written, and files of the FEVER data set are accepted, too.
            `hf://datasets/ORG/NAME:SPLIT` is a dataset of the model hub. In a file for OpenAI's Batch API, each line is
            a complete request. Such a file needs no `prompts`.
        format: `openai` if each line must be a request of OpenAI's Batch API. By default, glide recognizes such lines.
        id: name of the field that holds the id of a record, if this field is not `custom_id`. `line` stands for the
            number of the line.
        prompts: names and texts of the prompts. `{field}` stands for a field of the record. Write `{{` and `}}` for
            braces. A prompt may also be a list of messages with `role` and `content`. If each record brings its own
            request, leave `prompts` out.
        messages: name of the field that holds the messages of a chat, in braces: `"{field}"`. Use `messages` in place
            of `prompts`.
        variants: names of sets of `generate` options. The options of a variant win over `generate`. Each record gets a
            result for each model, prompt and variant.
        generate: options of text generation, such as max_tokens, temperature or stop. Generation is greedy unless an
            option of sampling is set. The field `generate` of a record wins over these options for this record.
        expect: name of the field that contains the right answer of a record. The accuracy of each prompt is computed
            from these answers. By default no accuracy is computed.
        out: folder for the results, relative to the working directory; or an object with `folder` and `format`.
        glideins: maximum number of glideins that run for the sweep at the same time. The limits of the site apply, too.
            If there are more models than glideins, some models wait until others have finished.
        timeout: time limit of one engine call, in seconds. If a call with several records takes longer, these
            records run again in smaller calls. If a call with one record takes longer, this record gets the error
            RecordTimeout.
        batch: number of records in a batch. With `auto`, there are two cases. If `pack` is also `auto`, the engine
            chooses the number. If `pack` is a number, a batch has one record.
        pack: number of batches in an HTCondor job. The last job may be smaller. With `auto`, glide chooses the number
            from measured times. The first jobs provide these measurements, and may be smaller than a batch.
    """

    name: Name
    model: ModelSpec | None = None
    models: dict[ModelName, ModelSpec] | None = Field(None, min_length=1)
    records: str
    format: Literal["openai"] | None = None
    id: str | None = None
    prompts: dict[PromptName, PromptValue] | None = Field(None, min_length=1)
    messages: str | None = None
    variants: dict[PromptName, dict[str, JsonValue]] | None = Field(None, min_length=1)
    generate: dict[str, JsonValue] = Field(default_factory=dict)
    expect: str | None = None
    out: OutSpec = Field(default_factory=OutSpec)
    glideins: Integer = Field(1, ge=1)
    timeout: Number = Field(600.0, gt=0)
    batch: Literal["auto"] | Annotated[Integer, Field(ge=1)] = "auto"
    pack: Literal["auto"] | Annotated[Integer, Field(ge=1)] = "auto"

    @field_validator("models", mode="before")
    @classmethod
    def _named(cls, models: Any) -> Any:
        """Give each model without a `name` the name of its key."""
        if not isinstance(models, dict):
            return models
        return {key: {"name": key, **spec} if isinstance(spec, dict) else spec for key, spec in models.items()}

    @field_validator("out", mode="before")
    @classmethod
    def _folder_alone(cls, out: Any) -> Any:
        return {"folder": out} if isinstance(out, str) else out

    @field_validator("messages")
    @classmethod
    def _one_field(cls, messages: str | None) -> str | None:
        """Return the name of the field without its braces."""
        if messages is None:
            return None
        if not (found := ONE_FIELD.fullmatch(messages)) or prompt_fields(messages) != [found[1]]:
            raise ValueError('must name one field that holds messages, as in "{conversation}"')
        return found[1]

    @model_validator(mode="after")
    def _one_of_each_kind(self) -> SweepFile:
        if (self.model is None) == (self.models is None):
            raise ValueError("give `model`, or `models` with a name for each model, but not both")
        if self.prompts is not None and self.messages is not None:
            raise ValueError("give `prompts` or `messages`, but not both")
        if self.format == "openai" and (self.prompts or self.messages):
            raise ValueError(
                "with `format: openai`, each record brings its own request; remove `prompts` and `messages`"
            )
        return self

    @property
    def model_axis(self) -> dict[str, ModelSpec]:
        """The models by name. If the file has `model` in place of `models`, the name is empty."""
        return {"": self.model} if self.model is not None else dict(self.models or {})
