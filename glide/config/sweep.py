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
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)  # fmt: skip

from glide.config.model import ModelSpec
from glide.config.reading import Integer, Name, Number, Strict

FIELD = re.compile(r"[^\W\d]\w*(?:[ -]+\w+)*")
BRACES = "write {{ and }} for braces"
# Names in a sweep's `out` folder: the summary file, and the folder of the report. `out` also contains a folder for each
# prompt or model. So no prompt may have the name SUMMARY, and no model may have the name SUMMARY or REPORT.
SUMMARY, REPORT = "summary.json", "report"
NO_ADAPTER = "none"  # name of the folder with the results of the model itself, if a sweep has adapters


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


def _is_not_the_base(name: str) -> str:
    if name == NO_ADAPTER:
        raise ValueError(f"{name} stands for the model without an adapter; choose another name")
    return name


PromptName = Annotated[Name, AfterValidator(_is_not_the_summary)]
ModelName = Annotated[PromptName, AfterValidator(_is_not_the_report)]
AdapterName = Annotated[PromptName, AfterValidator(_is_not_the_base)]
PromptText = Annotated[str, AfterValidator(_has_only_fields)]
AccountName = Annotated[str, StringConstraints(pattern=r"^[\w.@+-]+$", max_length=200)]
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
        adapters: names of LoRA adapters, and their folders or addresses, as in `path`. Each record gets a result with
            each adapter, and also one without an adapter (`none`). A node loads the model once, and keeps it while the
            adapters change. A folder has the format of the package peft. For llama.cpp, it has one GGUF file.
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
            result for each model, adapter, prompt and variant.
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
        batch: number of records in a batch. Each job gets whole batches. This does not change how many records the
            engine computes in one call; for that, set the option `batch` of the engine. With `auto`, a batch has as
            many records as an engine call if `pack` is also `auto`, and one record if `pack` is a number.
        pack: number of batches in an HTCondor job. The last job may be smaller. With `auto`, glide chooses the number
            from measured times. The first jobs provide these measurements, and may be smaller than a batch.
        accounting_group: HTCondor's accounting group of the sweep's jobs. By default none.
        accounting_group_user: user to whom HTCondor accounts the jobs. By default the user who submits them.
    """

    name: Name
    model: ModelSpec | None = None
    models: dict[ModelName, ModelSpec] | None = Field(None, min_length=1)
    adapters: dict[AdapterName, str] | None = Field(None, min_length=1)
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
    accounting_group: AccountName | None = None
    accounting_group_user: AccountName | None = None

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
    def accounting(self) -> dict[str, str]:
        """The commands of a job file that decide to whom HTCondor accounts the jobs, and their values."""
        names = ("accounting_group", "accounting_group_user")
        return {name: value for name in names if (value := getattr(self, name))}

    @property
    def model_axis(self) -> dict[str, ModelSpec]:
        """The models by name. If the file has `model` in place of `models`, the name is empty."""
        return {"": self.model} if self.model is not None else dict(self.models or {})


class ModelFile(SweepFile):
    """A file that describes models to serve: a sweep file, or one without `records`.

    Attributes:
        idle_seconds: seconds without a call (at least 60) after which no glidein keeps a model loaded for calls. The
            next call loads it again. By default, one glidein always keeps it.
    """

    records: str = ""
    idle_seconds: Integer | None = Field(None, ge=60)
