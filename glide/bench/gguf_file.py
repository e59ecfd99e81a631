"""Write a Llama model or a LoRA adapter in the Hugging Face format as a GGUF file, which llama.cpp can load.

llama.cpp has its own converter, which knows all models. It is not in a package. This one knows only Llama models with
a byte-level tokenizer, like the models that glide's tests and benchmarks make. It is also a command:
`python -m glide.bench.gguf_file FOLDER FILE`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# For each part of a layer, its name in GGUF.
PARTS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NORMAL, CONTROL = 1, 3  # types of tokens in GGUF


def write_gguf(folder: Path, file: Path) -> None:
    """Write the model in a folder to a GGUF file, with weights in float32.

    Raises:
        KeyError: the model is not a Llama model of the expected form.
    """
    import gguf
    import numpy
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text("utf-8"))
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, "llama")
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text("utf-8")), config)
    for name, weights in load_file(folder / "model.safetensors").items():
        weights = weights.astype(numpy.float32)
        part = name.removesuffix(".weight")
        if part.startswith("model.layers."):
            _, _, layer, part = part.split(".", 3)
            weights = _with_neighbours(part, weights, config)
            part = f"blk.{layer}.{PARTS[part]}"
        else:
            part = OTHERS[part]
        writer.add_tensor(f"{part}.weight", numpy.ascontiguousarray(weights))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_adapter_gguf(folder: Path, model: Path, file: Path) -> None:
    """Write a LoRA adapter, which peft has saved in a folder, to a GGUF file, with weights in float32.

    Args:
        model: folder of the model, in the Hugging Face format.

    Raises:
        KeyError: the adapter changes other parts than the linear layers.
    """
    import gguf
    import numpy
    from safetensors.numpy import load_file

    config = json.loads((model / "config.json").read_text("utf-8"))
    adapter = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(adapter["lora_alpha"]))
    for name, weights in load_file(folder / "adapter_model.safetensors").items():
        weights = weights.astype(numpy.float32)
        _, _, _, _, layer, part = name.split(".", 5)
        part, _, side = part.removesuffix(".weight").rpartition(".lora_")
        if side == "B":
            weights = _with_neighbours(part, weights, config)
        writer.add_tensor(f"blk.{layer}.{PARTS[part]}.weight.lora_{side.lower()}", numpy.ascontiguousarray(weights))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _with_neighbours(part: str, weights: Any, config: dict[str, Any]) -> Any:
    """Return the weights of a part of a layer, with the rows in llama.cpp's order.

    For rotary embeddings, transformers pairs element i of a head with element i + size / 2, and llama.cpp pairs
    neighbours.
    """
    if part not in ("self_attn.q_proj", "self_attn.k_proj"):
        return weights
    count = config["num_attention_heads" if part == "self_attn.q_proj" else "num_key_value_heads"]
    halves = weights.reshape(count, 2, weights.shape[0] // count // 2, weights.shape[1])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    texts = {number: text for text, number in tokenizer["model"]["vocab"].items()} | special
    tokens = [texts.get(number, f"<unused {number}>") for number in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if number in special else NORMAL for number in range(len(tokens))])
    # llama.cpp refuses a model without merges. No text contains the two tokens of this one as neighbours.
    merges = tokenizer["model"]["merges"] or [(tokens[config["bos_token_id"]], tokens[config["bos_token_id"]])]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(tokenizer.get("post_processor") is not None)


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
