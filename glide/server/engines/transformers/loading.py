"""Load a model's folder, or raise in one line what it lacks: the library answers with pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from glide.errors import TemplateError

TASKS = {
    "generate": ("ForCausalLM", "a causal language model"),
    "embed": ("", "a model of the transformers library"),
    "classify": ("ForSequenceClassification", "a model with a head that classifies"),
}
SHOWN = 3  # weights that are missing
LINE = 300  # characters of the library's own words

Loaded = TypeVar("Loaded")


def model_class(task: str) -> Any:
    import transformers

    return getattr(transformers, f"AutoModel{TASKS[task][0]}")


def load_tokenizer(folder: str) -> Any:
    """Return the tokenizer in a folder; TemplateError when it can't be loaded."""
    import transformers

    return _attempt(
        lambda: transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False), "the tokenizer"
    )


def load_model(folder: str, task: str, **options: Any) -> Any:
    """Return the model in a folder.

    Args:
        options: of `from_pretrained`.

    Raises:
        TemplateError: it can't be loaded, is none for this task, or lacks weights that the task needs.
    """
    import transformers

    # Said outright: asked, the library would wait at the terminal, and leave an alarm that ends the process.
    config = _attempt(lambda: transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False), "the model")
    wanted = TASKS[task][1]
    if type(config) not in model_class(task)._model_mapping:
        if getattr(config, "auto_map", None):
            raise TemplateError(_OWN_CODE)
        kind = "an encoder-decoder model" if config.is_encoder_decoder else "a model"
        raise TemplateError(f"task {task} needs {wanted}, and this is {kind} of type {config.model_type}")
    quantized = (getattr(config, "quantization_config", None) or {}).get("quant_method", "")
    what = f"the model, which is quantized with {quantized}," if quantized else "the model"
    model, found = _attempt(
        lambda: model_class(task).from_pretrained(folder, trust_remote_code=False, output_loading_info=True, **options),
        what,
    )
    # They would be random: a pooler that embeddings do not use may be missing, a head may not.
    if (missing := sorted(found["missing_keys"])) and task != "embed":
        names = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        kind = ", ".join(config.architectures or ["a model of another kind"])
        raise TemplateError(f"task {task} needs {wanted}, and the files, of {kind}, have no weights {names}")
    return model.eval()


_OWN_CODE = (
    "the model brings its own Python code (auto_map in config.json), which is never run; "
    "use a version of it whose type transformers knows"
)


def _attempt(load: Callable[[], Loaded], what: str) -> Loaded:
    try:
        return load()
    except Exception as error:
        words = str(error)
        if "trust_remote_code" in words:
            raise TemplateError(_OWN_CODE) from error
        first = next((line.strip() for line in words.splitlines() if line.strip()), "")[:LINE]
        lacks = " (a package is missing in the environment of the template)" if isinstance(error, ImportError) else ""
        raise TemplateError(f"{what} can't be loaded: {type(error).__name__}: {first}{lacks}") from error
