"""A sweep file."""

from __future__ import annotations

import re
import string
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)  # fmt: skip

from glide.config.reading import Name, Number, Strict, Whole
from glide.server.engines import engine_class
from glide.server.engines.openai import NOT_A_SITES
from glide.template.spec import Keep
from glide.vocabulary import State

PHASES = {
    "fetch": State.FETCHING, "import": State.IMPORTING, "load": State.LOADING, "warm": State.WARMING,
    "serve": State.WARM,
}  # fmt: skip


def checked_options(engine: str, options: dict[str, Any]) -> dict[str, Any]:
    """An engine's options as it will get them; ValueError for what it does not have or understand."""
    known = engine_class(engine).Options
    names = sorted(known.__dataclass_fields__)
    for key in options:
        if key not in names:
            raise ValueError(f"{engine} has no option {key!r}; it has {', '.join(names)}")
    checked = TypeAdapter(known).validate_python(options)
    return {key: getattr(checked, key) for key in options}


class ModelSpec(Strict):
    """What to load.

    Attributes:
        name: as it is advertised (GlideModel).
        engine: transformers, openai (a model served elsewhere) or noop (a fake that takes known time).
        path: the model's folder in the Hugging Face format, relative to the sweep file; or hf://, https://, osdf://.
        keep: what stays on a node from job to job: the loaded state, its files alone (each job loads the model), or
            nothing (each job fetches it, too, unless it lies on the node's disk). To see what sticky state is worth;
            with `lanes: 1`, as two jobs at a time share what they load.
        environment: what the engine runs in, by default the nodes' own Python: a packed venv or conda environment, an
            Apptainer image, or a folder that nodes have.
        options: the engine's own.
        budgets: seconds that a phase (fetch, import, load, warm, serve) may take before it counts as hanging.
    """

    name: Name
    engine: str
    path: str | None = None
    keep: Keep = "state"
    environment: str | None = None
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True)  # an engine may insist on one
    budgets: dict[Literal["fetch", "import", "load", "warm", "serve"], Annotated[Number, Field(gt=0)]] = Field(
        default_factory=dict
    )

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, engine: str) -> str:
        engine_class(engine)
        if engine == "python":
            raise ValueError("the python engine serves glide.Session; a file names noop, openai or transformers")
        return engine

    @field_validator("options")
    @classmethod
    def _checked_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """As the engine will get them: what is accepted for a number here must be one there."""
        engine = info.data.get("engine")
        if engine is None:  # refused itself
            return options
        if engine == "openai" and "key_file" in options:
            raise ValueError(f"{NOT_A_SITES}; leave it out, and ask the site's admin for an entry with that service")
        return checked_options(engine, options)

    @model_validator(mode="after")
    def _has_a_path(self) -> ModelSpec:
        if self.engine == "transformers" and self.path is None:
            raise ValueError("the transformers engine needs a path: the model's folder")
        return self


FIELD = re.compile(r"[^\W\d]\w*(?:[ -]+\w+)*")
BRACES = "write {{ and }} for braces"
SUMMARY = "summary.json"  # in a sweep's `out`, beside a folder for each prompt


def prompt_fields(prompt: str) -> list[str]:
    """The names of the `{field}`s in a prompt; ValueError when a brace is neither a field nor doubled."""
    try:
        pieces = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise ValueError(f"{error}; {BRACES}") from None
    names = []
    for _, name, form, conversion in pieces:
        if name is None:
            continue
        if form or conversion or not FIELD.fullmatch(name):
            raise ValueError(f"{{{name}}} is no field's name (a word, or words with ' ', '-' or '_' between); {BRACES}")
        names.append(name)
    return names


def _plain_fields(prompt: str) -> str:
    prompt_fields(prompt)
    return prompt


def _no_other_file(name: str) -> str:
    if name == SUMMARY:
        raise ValueError(f"{name} is what the sweep's summary is called; give the prompt another name")
    return name


PromptName = Annotated[Name, AfterValidator(_no_other_file)]
Prompt = Annotated[str, AfterValidator(_plain_fields)]


class SweepFile(Strict):
    """A sweep: every record once per prompt.

    Attributes:
        name: of its jobs, and of its report.
        model: what to load.
        records: a JSON object a line, each with a unique string custom_id; also FEVER's own format, CSV, TSV, Parquet.
            Relative to the sweep file.
        prompts: by name. `{field}` takes a record's field, `{{` is a brace.
        generate: options of the generation, as max_new_tokens or do_sample; text is greedy unless do_sample is true.
        expect: the field with the right answer, for the accuracy.
        out: folder of the results, relative to the working directory.
        glideins: how many may run at once; the site's limits still hold.
        timeout: seconds that one engine call may take.
        batch: records per engine call, and unit of retry.
        pack: engine calls per HTCondor job.
    """

    name: Name
    model: ModelSpec
    records: str
    prompts: dict[PromptName, Prompt] = Field(min_length=1)
    generate: dict[str, JsonValue] = Field(default_factory=dict)
    expect: str | None = None
    out: str = "results"
    glideins: Whole = Field(1, ge=1)
    timeout: Number = Field(600.0, gt=0)
    batch: Literal["auto"] | Annotated[Whole, Field(ge=1)] = "auto"
    pack: Literal["auto"] | Annotated[Whole, Field(ge=1)] = "auto"
