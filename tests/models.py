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
