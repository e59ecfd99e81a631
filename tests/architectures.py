"""Tiny models with random weights, one for each causal architecture of the library transformers.

Run as a program, this module compares each model's texts in the transformers engine with those of plain transformers,
where each prompt is alone: `python -m tests.architectures FOLDER [TYPE…]`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models import Plain, loaded, served, tiny_tokenizer

# Values for the attributes of a configuration that make a model small. An attribute that a type lacks is left out.
SMALL: dict[str, Any] = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim": 64, "intermediate_size": 128, "ffn_dim": 128, "n_inner": 128,
    "d_ff": 128, "d_inner": 128, "dff": 128, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "decoder_layers": 2, "encoder_layers": 1, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "n_positions": 512,
    "max_seq_len": 512, "seq_length": 512, "n_ctx": 512, "context_length": 512, "embedding_size": 64,
    "word_embed_proj_dim": 64, "hidden_act_dim": 64, "attention_hidden_size": 64, "embedding_dim": 64,
    "sliding_window": 8, "attention_window_size": 16, "local_attention": 16, "initializer_range": 0.3, "init_std": 0.3,
    # mixtures of experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "first_k_dense_replace": 1,
    "shared_intermediate_size": 64, "moe_num_experts": 4, "moe_k": 2, "num_shared_experts": 1, "n_shared_experts": 1,
    # compressed attention
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "qk_head_dim": 16, "rotary_dim": 8,
    # state space models and recurrences
    "state_size": 8, "chunk_size": 8, "lru_width": 64, "mamba_d_state": 8, "mamba_chunk_size": 8, "mamba_n_heads": 8,
    "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_d_ssm": 128,
    "mamba_ngroups": 1, "n_mamba_heads": 8, "mamba_headdim": 16, "ssm_state_size": 8, "use_mamba_kernels": False,
    "block_size": 8, "num_blocks": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}  # fmt: skip
DEEP = {"num_hidden_layers": 8}  # for types whose first layers have no attention
COMPRESSED = {"num_key_value_heads": 4, "head_dim": 8}  # attention with compressed keys and values
# Values that only one type needs. None: the attribute keeps its default.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash"), COMPRESSED),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), COMPRESSED),
    "bailing_hybrid": DEEP, "kimi_linear": DEEP, "lfm3": DEEP, "falcon": {"head_dim": None},
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "bert": {"is_decoder": True}, "bert-generation": {"is_decoder": True}, "big_bird": {"is_decoder": True},
    "camembert": {"is_decoder": True}, "data2vec-text": {"is_decoder": True}, "electra": {"is_decoder": True},
    "ernie": {"is_decoder": True}, "megatron-bert": {"is_decoder": True}, "rembert": {"is_decoder": True},
    "roberta": {"is_decoder": True}, "roberta-prelayernorm": {"is_decoder": True}, "roc_bert": {"is_decoder": True},
    "roformer": {"is_decoder": True}, "xlm-roberta": {"is_decoder": True}, "xlm-roberta-xl": {"is_decoder": True},
    "xmod": {"is_decoder": True, "languages": ["en"], "default_language": "en"},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}, "attn_config": {"kv_n_heads": 2},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {"num_hidden_layers": 4, "layer_types": ["mamba", "attention"] * 2},
    "jamba": {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "num_experts": 2,
    },
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    "phi3": {"original_max_position_embeddings": 512}, "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_next": {"num_hidden_layers": 4}, "recurrent_gemma": {"num_hidden_layers": 3},
    "xlm": {"n_words": 320, "emb_dim": 64}, "zamba2": {
        "num_hidden_layers": 4, "num_key_value_heads": 4, "layers_block_type": ["mamba", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3], "num_mem_blocks": 1, "attention_head_dim": 32,
    },
}  # fmt: skip
# With their usual weights, these types would say nearly the same to every prompt.
LOUDER = ("rwkv", "xlstm", "mamba", "mamba2", "falcon_mamba", "dbrx")
GENERATE = {"max_new_tokens": 12}


@dataclass(frozen=True)
class Verdict:
    """How the engine treats a model.

    Attributes:
        loaded: whether the engine has loaded the model.
        wrong: number of prompts whose text differs from plain transformers.
        said: the reason why the model was not loaded, or how the engine batches it.
        texts: number of different texts.
    """

    loaded: bool
    wrong: int
    said: str
    texts: int = 0


def types() -> list[str]:
    """Return the types that the library can load as causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def make(model_type: str, folder: Path) -> None:
    """Write a tiny model of a type, with random weights. Raise an error if the type cannot be made so small."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny_tokenizer(begin=None, pad="<pad>")
    plain = AutoConfig.for_model(model_type)
    small = {name: value for name, value in SMALL.items() if getattr(plain, name, None) is not None}
    ends = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    values = {**ends, **small, **OWN.get(model_type, {})}
    kept = {name: value for name, value in values.items() if value is not None or name == "bos_token_id"}
    config = AutoConfig.for_model(model_type, **kept)
    with torch.device("meta"):  # without memory, as some types have parts of their own that stay large
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > 30_000_000:
        raise ValueError(f"has {size} parameters")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if model_type in LOUDER:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1 and parameter.abs().max() > 0:
                    parameter.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prompts() -> list[str]:
    chosen = random.Random(5)
    texts = ["".join(chosen.choices("abcdefg hij klm", k=chosen.randint(1, 40))) for _ in range(20)]
    return [
        text if n % 3 else f"Claim about the river and the evidence for it: {text} -> Verdict:"
        for n, text in enumerate(texts)
    ]


def verdict(folder: Path) -> Verdict:
    """Compare the texts of a model."""
    from glide.errors import TemplateError

    try:
        engine = loaded(folder)
    except TemplateError as error:
        return Verdict(False, 0, str(error))
    completions = served(engine, prompts(), **GENERATE)
    plain = Plain(folder)
    wanted = [plain(prompt, **GENERATE)[0] for prompt in prompts()]
    wrong = sum(one.text != text for one, text in zip(completions, wanted, strict=True))
    return Verdict(True, wrong, engine.describe()["batching"], len(set(wanted)))


def verdicts(folder: Path, chosen: list[str]) -> Iterator[tuple[str, Verdict | Exception]]:
    """Yield each type with its verdict, or with the error that its model cannot be made or served."""
    for model_type in chosen:
        try:
            make(model_type, folder / model_type)
            yield model_type, verdict(folder / model_type)
        except Exception as error:
            yield model_type, error


if __name__ == "__main__":
    for name, found in verdicts(Path(sys.argv[1]), sys.argv[2:] or types()):
        print(name, found if isinstance(found, Verdict) else f"{type(found).__name__}: {str(found)[:160]}", flush=True)
