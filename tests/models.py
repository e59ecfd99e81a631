"""Tiny models for the tests, made on the spot: the same folder a real model has, in a second and 100 kB."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glide.server import engines
from glide.template import Template

SENTENCES = (
    "The claim is: the river flows north.",
    "Evidence: nobody has seen the river since 1908.",
    "Verdict: SUPPORTED, REFUTED or NOT ENOUGH INFO.",
    "A model that stays warm answers the next question sooner than one that has to be loaded again.",
)
ODD = [
    "", " ", "Verdict:", "The claim is: the river flows north.", "🦉🦉 and 👩‍👩‍👧‍👦", "שלום עולם", "مرحبا بالعالم",
    "{claim} {{x}} }{", "two\nlines\n\n", "\ttab\r\n", "null\x00byte", "\u2028", "Verdict:", "Verdict:", "<s></s>",
    "é" * 90,
]  # fmt: skip


def tiny_tokenizer(begin: str | None = "<s>", pad: str | None = None) -> Any:
    """Return a byte-level tokenizer, the same at every call.

    Args:
        begin: a token that begins every text. So an empty prompt has a token, and there is something to continue.
        pad: the padding token.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[token for token in (pad, begin, "</s>") if token],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    special = {name: token for name, token in (("bos_token", begin), ("pad_token", pad)) if token}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **special)


def tiny_llama(folder: Path, context: int = 512) -> Path:
    """Write a random Llama with a byte-level tokenizer, the same at every call, and return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)

    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,  # enough for texts that differ from prompt to prompt
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def with_template(folder: Path) -> Path:
    """Give a model's tokenizer a chat template that writes <s> itself, as templates do."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


SIZE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.3, "dtype": "float32",
}  # fmt: skip
GROUPED = {**SIZE, "num_key_value_heads": 2}
LABELS = {"num_labels": 3, "id2label": {0: "SUPPORTED", 1: "REFUTED", 2: "UNKNOWN"}}
XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "initializer_range": 0.3, "dtype": "float32"}
RWKV = {
    "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 64, "dtype": "float32",
}  # fmt: skip
STRETCHED = {**GROUPED, "max_position_embeddings": 32}
# By kind: what loads it, the library's name for the type, and its configuration.
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "windowed": ("CausalLM", "mistral", {**GROUPED, "sliding_window": 16}),
    "encoder": ("", "bert", SIZE),
    "judge": ("SequenceClassification", "llama", {**GROUPED, **LABELS, "pad_token_id": None}),
    "encoding-judge": ("SequenceClassification", "bert", {**SIZE, **LABELS}),
    # Padding, or even company, changes what these say.
    "minimax": ("CausalLM", "minimax", {
        **GROUPED, "block_size": 8, "num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"],
    }),
    "rwkv": ("CausalLM", "rwkv", RWKV),
    "xlnet": ("CausalLM", "xlnet", XLNET),
    "xlnet-judge": ("SequenceClassification", "xlnet", {**XLNET, **LABELS, "pad_token_id": 5}),
    # Positions beyond 32 are stretched: by a factor of their own, with the longest row of a call, or all at once.
    "yarn": ("CausalLM", "qwen2", {**STRETCHED, "rope_parameters": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0,
    }}),
    "dynamic": ("CausalLM", "llama", {**STRETCHED, "rope_parameters": {
        "rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0,
    }}),
    "longrope": ("CausalLM", "phi3", {
        **GROUPED, "max_position_embeddings": 256, "original_max_position_embeddings": 32, "pad_token_id": None,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
                            "long_factor": [4.0, 5.0, 6.0, 7.0], "original_max_position_embeddings": 32},
    }),
    # 20 rows of positions, of which the first two are not used.
    "roberta": ("", "roberta", {**SIZE, "max_position_embeddings": 20, "pad_token_id": 1}),
    "seq2seq": ("Seq2SeqLM", "t5", {
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0,
        "initializer_factor": 5.0, "dtype": "float32",
    }),
    "bart": ("Seq2SeqLM", "bart", {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
        "init_std": 0.3, "decoder_start_token_id": 1, "dtype": "float32",
    }),
}  # fmt: skip


def tiny_variant(source: Path, folder: Path, kind: str) -> Path:
    """Write another random model, one of VARIANTS, with the tokenizer of `source`, and return its folder."""
    import transformers as library

    tokenizer = library.AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)
    loader, model_type, options = VARIANTS[kind]
    ends = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    config = library.AutoConfig.for_model(model_type, **{**ends, **options})
    library.set_seed(21)
    model = getattr(library, f"AutoModel{loader and 'For' + loader}").from_config(config)
    if kind == "rwkv":  # it starts with most of its weights at nothing, and would say one thing to all prompts
        for parameter in model.parameters():
            library.set_seed(parameter.numel())
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def edited(source: Path, folder: Path, **files: dict[str, Any]) -> Path:
    """Copy a model with other values in its JSON files, as edited(a, b, config={"eos_token_id": None})."""
    shutil.copytree(source, folder)
    for name, values in files.items():
        path = folder / f"{name}.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**content, **values}), encoding="utf-8")
    return folder


class Plain:
    """What plain transformers makes of a prompt alone, each asked for once."""

    def __init__(self, folder: Path):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.decodes = AutoConfig.from_pretrained(folder).is_encoder_decoder
        kind = AutoModelForSeq2SeqLM if self.decodes else AutoModelForCausalLM
        self.model = kind.from_pretrained(folder).eval()
        self.known: dict[str, list[tuple[str, int]]] = {}

    def __call__(self, prompt: str, **generate: Any) -> tuple[str, int]:
        """Return the text and how many tokens that is."""
        return self.all(prompt, **generate)[0]

    def all(self, prompt: str, **generate: Any) -> list[tuple[str, int]]:
        """Return all texts, where the options ask for several."""
        asked = json.dumps([prompt, generate])
        if asked not in self.known:
            options: dict[str, Any] = {"do_sample": False, "tokenizer": self.tokenizer, **generate}
            encoded = self.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            start = 1 if self.decodes else encoded["input_ids"].shape[1]
            rows = self.model.generate(**encoded, **options)[:, start:]
            self.known[asked] = [(self.tokenizer.decode(row, skip_special_tokens=True), len(row)) for row in rows]
        return self.known[asked]

    def ended(self, prompt: str, **generate: Any) -> bool:
        """Return whether an end token has ended the text."""
        encoded = self.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        row = self.model.generate(**encoded, do_sample=False, **generate)[0, encoded["input_ids"].shape[1] :]
        ends = generate.get("eos_token_id", self.model.generation_config.eos_token_id)
        return int(row[-1]) in (ends if isinstance(ends, list) else [ends])

    def continuation(self, ids: Sequence[int], new_tokens: int) -> str:
        """Return the greedy text after these tokens."""
        import torch

        row = self.model.generate(torch.tensor([list(ids)]), max_new_tokens=new_tokens, do_sample=False)[0, len(ids) :]
        return str(self.tokenizer.decode(row, skip_special_tokens=True))


def loaded(folder: Path, **options: Any) -> Any:
    """Load the transformers engine in this process."""
    options = {"dtype": "float32", "device": "cpu", **options}
    engine: Any = engines.build(Template("tiny", "transformers", str(folder), options=options))
    engine.prepare()
    engine.load(str(folder), lambda state: None)
    return engine


def served(engine: Any, prompts: Sequence[str], **generate: Any) -> list[engines.Completion]:
    """Serve prompts as the engine's process does it: a plan, then its calls; in the prompts' order."""
    records = [engines.EngineRecord(number, prompt, generate) for number, prompt in enumerate(prompts)]
    done: dict[int, engines.Completion] = {}
    for call in engine.plan(records):
        done |= zip((record.key for record in call), engine.call(call), strict=True)
    return [done[number] for number in range(len(prompts))]


def texts(engine: Any, prompts: Sequence[str], **generate: Any) -> list[str | None]:
    return [completion.text for completion in served(engine, prompts, **generate)]
