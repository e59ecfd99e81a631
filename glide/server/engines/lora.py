"""Check LoRA adapters that the package peft has saved. This module needs only the standard library.

An adapter's configuration can make peft change the model's own weights, load other files, or import packages. So only
the fields below are used, and all other fields must be empty. Access points and nodes both do these checks.
"""

from __future__ import annotations

import json
import re
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # the files of an adapter
# Fields that describe the matrices. The adapter is loaded with these fields.
USED = (
    "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "fan_in_fan_out", "use_rslora", "use_dora",
)  # fmt: skip
# Fields that matter only for training, or that describe the adapter.
IGNORED = (
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "init_lora_weights", "lora_dropout", "bias", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "ensure_weight_tying", "lora_dtype", "lorap_lr_ratio",
)  # fmt: skip
# Values of init_lora_weights with which the model itself stays as it is. With other texts, such as pissa, training has
# changed the model's weights.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_MATRIX = re.compile(r"base_model\.model\..+\.lora_((embedding_)?[AB](\.weight)?|magnitude_vector(\.weight)?)")
LARGEST_HEADER = 100_000_000  # maximum size in bytes of the header of a safetensors file, as in the library itself


def lora_fields(content: bytes) -> dict[str, Any]:
    """Return the used fields of an adapter's configuration.

    Raises:
        ValueError: the configuration is not one of a LoRA adapter, or has a field that is not supported.
    """
    try:
        config = json.loads(content)
        kind = config["peft_type"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{CONFIG} is not the description of an adapter: {error!r:.200}") from None
    if kind != "LORA":
        raise ValueError(f"{CONFIG}: the adapter has the type {kind!r:.40}, but only LORA is possible")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{CONFIG}: the field bias must be none")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        raise ValueError(
            f"{CONFIG}: with init_lora_weights {config['init_lora_weights']!r:.40}, training changed the model itself;"
            " convert the adapter with path_initial_model_for_weight_conversion of peft's save_pretrained"
        )
    for name, value in config.items():
        if value and name not in USED and name not in IGNORED:
            raise ValueError(f"{CONFIG}: the field {name!r:.60} is not supported; train the adapter without it")
    return {name: config[name] for name in USED if config.get(name) is not None}


def shapes(header: bytes) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a safetensors file, by name.

    Args:
        header: the file's first bytes: the size of the header, and the header.

    Raises:
        ValueError: the header is damaged.
    """
    try:
        tensors = json.loads(header[8 : 8 + header_size(header)])
        return {name: list(map(int, each["shape"])) for name, each in tensors.items() if name != "__metadata__"}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("not a safetensors file, or it is damaged") from None


def header_size(start: bytes) -> int:
    """Return the size of a safetensors file's header in bytes, from the first 8 bytes of the file."""
    return int.from_bytes(start[:8], "little")


def check_matrices(names: list[str]) -> None:
    """Raise ValueError if an adapter's file contains other tensors than the matrices of LoRA.

    Such tensors would replace weights of the model itself.
    """
    for name in names:
        if not _MATRIX.fullmatch(name):
            raise ValueError(
                f"{WEIGHTS} contains {name!r:.120}, which is no matrix of LoRA; save the adapter with"
                " save_embedding_layers=False"
            )
