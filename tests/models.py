"""Tiny models for the tests, made on the spot: the same folder a real model has, in a second and 100 kB."""

from __future__ import annotations

from pathlib import Path

SENTENCES = (
    "The claim is: the river flows north.",
    "Evidence: nobody has seen the river since 1908.",
    "Verdict: SUPPORTED, REFUTED or NOT ENOUGH INFO.",
    "A model that stays warm answers the next question sooner than one that has to be loaded again.",
)


def tiny_llama(folder: Path, context: int = 512) -> Path:
    """Write a random Llama with a byte-level tokenizer, the same at every call, and return its folder."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # An empty prompt still begins with <s>, so that there is something to continue.
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)

    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
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


def tiny_variant(source: Path, folder: Path, kind: str) -> Path:
    """Write another random model with the tokenizer of `source`, and return its folder.

    Args:
        kind: "windowed" (a Mistral that looks back 16 tokens), "encoder" (a BERT), "judge" (a Llama that
            classifies, without a padding token), or "encoding-judge" (a BERT that does).
    """
    import transformers as library

    size = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "initializer_range": 0.3, "dtype": "float32",
    }  # fmt: skip
    tokenizer = library.AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)
    size |= {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    labels = {"num_labels": 3, "id2label": {0: "SUPPORTED", 1: "REFUTED", 2: "UNKNOWN"}}
    library.set_seed(21)
    model: library.PreTrainedModel
    if kind == "windowed":
        model = library.MistralForCausalLM(library.MistralConfig(**size, num_key_value_heads=2, sliding_window=16))
    elif kind == "judge":
        llama = library.LlamaConfig(**size, **labels, num_key_value_heads=2, pad_token_id=None)
        model = library.LlamaForSequenceClassification(llama)
    elif kind == "encoding-judge":
        model = library.BertForSequenceClassification(library.BertConfig(**size, **labels))
    else:
        model = library.BertModel(library.BertConfig(**size))
    model.save_pretrained(folder)
    return folder
