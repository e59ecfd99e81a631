"""Load a model from its folder. If this fails, the error is one line with the cause, not the library's long message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from glide.errors import TemplateError

TASKS = {
    "generate": ("ForCausalLM", "a causal language model or an encoder-decoder model"),
    "embed": ("", "a model of the transformers library"),
    "classify": ("ForSequenceClassification", "a model with a classification head"),
}
SHOWN = 3  # maximum number of missing weights that a message names
MAX_CAUSE = 300  # maximum number of characters that are taken from the library's own message

Loaded = TypeVar("Loaded")


def model_class(task: str, is_encoder_decoder: bool = False) -> Any:
    """Return the library's class that loads models for a task."""
    import transformers

    if task == "generate" and is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    return getattr(transformers, f"AutoModel{TASKS[task][0]}")


def load_tokenizer(folder: str) -> Any:
    """Return the tokenizer in a folder.

    Raises:
        TemplateError: the tokenizer cannot be loaded.
    """
    import transformers

    return _attempt(
        lambda: transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False), "the tokenizer"
    )


def load_model(folder: str, task: str, **options: Any) -> Any:
    """Return the model in a folder, in evaluation mode.

    Args:
        folder: the model's folder, in the Hugging Face format.
        task: name of the task, a key of TASKS.
        options: further arguments of `from_pretrained`.

    Raises:
        TemplateError: the model cannot be loaded, is not of a type for the task, or lacks weights for the task.
    """
    import transformers

    # Without trust_remote_code=False, the library may ask on standard input whether to run the model's code. An engine
    # has no user who could answer this question.
    config = _attempt(lambda: transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False), "the model")
    wanted = TASKS[task][1]
    chosen = model_class(task, bool(config.is_encoder_decoder))
    if type(config) not in chosen._model_mapping:
        if getattr(config, "auto_map", None):
            raise TemplateError(_OWN_CODE)
        kind = "an encoder-decoder model" if config.is_encoder_decoder else "a model"
        raise TemplateError(f"task {task} needs {wanted}, but this is {kind} of type {config.model_type}")
    quantized = (getattr(config, "quantization_config", None) or {}).get("quant_method", "")
    what = f"the model, which is quantized with {quantized}," if quantized else "the model"
    model, loading_info = _attempt(
        lambda: chosen.from_pretrained(folder, trust_remote_code=False, output_loading_info=True, **options),
        what,
    )
    # The library sets missing weights to random values. So missing weights are an error, except for the task embed.
    # This task does not use all weights; for example, it does not use the weights of a pooler.
    if (missing := sorted(loading_info["missing_keys"])) and task != "embed":
        names = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        kind = ", ".join(config.architectures or ["a model of another kind"])
        raise TemplateError(
            f"some weights for task {task} are missing: {names}; "
            f"this task needs {wanted}, and the model's files contain {kind}"
        )
    return model.eval()


_OWN_CODE = (
    "the model brings its own Python code (auto_map in config.json), which glide never runs; "
    "use a version of the model whose type transformers knows"
)


def _attempt(load: Callable[[], Loaded], what: str) -> Loaded:
    """Return the result of `load`.

    Raises:
        TemplateError: `load` raised an error. The message is one line that begins with `what`.
    """
    try:
        return load()
    except Exception as error:
        message = str(error)
        if "trust_remote_code" in message:
            raise TemplateError(_OWN_CODE) from error
        first = next((line.strip() for line in message.splitlines() if line.strip()), "")[:MAX_CAUSE]
        hint = "; add the missing package to the template's environment" if isinstance(error, ImportError) else ""
        raise TemplateError(f"{what} can't be loaded: {type(error).__name__}: {first}{hint}") from error
