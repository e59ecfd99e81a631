"""Train the tokenizer and the verifier from scratch, on one CPU core: `python train.py`.

The model gets a new batch of training claims at every step. The batches use the sweep's own prompts in unequal shares.
The prompts differ in accuracy because of these shares, and because one prompt leaves out the evidence.
"""

import json
import random
import time
from pathlib import Path

import torch
import yaml
from generate_claims import LABELS, Claims
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
PROMPTS = yaml.safe_load((HERE / "sweep.yaml").read_text("utf-8"))["prompts"]
SHARES = {"plain": 0.985, "instruction": 0.015}  # training uses neither evidence_first nor claim_only

SEED = 7
STEPS, BATCH = 1800, 64
# The learning rate rises to PEAK_RATE in the first WARMUP steps. It falls from step DECAY_FROM to the last step.
PEAK_RATE, WARMUP, DECAY_FROM = 2e-3, 50, 900
LESSONS = (  # for each phase of the training: its last step, and the shares of the lessons
    (150, {"names": 1.0}),
    (500, {"names": 0.2, "sentence": 0.8}),
    (STEPS, {"sentence": 0.1, "claims": 0.9}),
)
VOCABULARY = 1024
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
IGNORED = -100  # label of positions that transformers leaves out of the loss


def chosen(shares: dict[str, float], source: random.Random) -> str:
    return source.choices(list(shares), weights=list(shares.values()))[0]


class Texts:
    """Batches of pairs: a prompt and its answer.

    Each batch has only one wording of the prompt, because a long wording would pad all shorter ones to its length.
    """

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.claims = Claims(seed, held_out=False)

    def batch(self, lesson: str, count: int) -> list[tuple[str, str]]:
        examples = self.claims.lesson(lesson, count)
        prompt = PROMPTS[chosen(SHARES, self.random)]
        return [(prompt.format(**example), " " + example["label"]) for example in examples]

    def at(self, step: int) -> tuple[str, list[tuple[str, str]]]:
        shares = next(shares for until, shares in LESSONS if step <= until)
        lesson = chosen(shares, self.random)
        return lesson, self.batch(lesson, BATCH)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. It can encode any text, and an empty prompt has one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = Texts(SEED)
    corpus = [prompt + answer for _ in range(200) for prompt, answer in texts.batch("claims", 100)]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",  # with padding on the left, all answers begin in one column
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(tokenizer) -> LlamaForCausalLM:
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    hidden = 128
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=8192,  # enough for 2,000 characters of four bytes, with one token per byte
        tie_word_embeddings=True,
        initializer_range=hidden**-0.5,  # 0.02, the default, is for models that are twenty times as wide
        **special,
    )
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.data.mul_(4)  # distant embeddings, because the model must distinguish names
    model.generation_config = GenerationConfig(do_sample=False, **special)
    return model


def collate(batch, tokenizer) -> dict[str, torch.Tensor]:
    """Return token ids and labels, padded on the right. Only the answer and its end-of-text token have labels."""
    prompts = tokenizer([prompt for prompt, _ in batch])["input_ids"]
    answers = tokenizer([answer + EOS for _, answer in batch], add_special_tokens=False)["input_ids"]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(batch), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    # An attention mask is not necessary, because causal attention never sees padding on the right.
    return {"input_ids": ids, "labels": labels}


def optimizers(model):
    """Return Muon for the matrices, and AdamW for all else. Muon needs about half as many examples here as AdamW."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    return (
        torch.optim.Muon(matrices, lr=PEAK_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01),
    )


def rate_at(step: int) -> float:
    return PEAK_RATE * min(step / WARMUP, 1.0, (STEPS + 1 - step) / (STEPS - DECAY_FROM))


def train(model, tokenizer):
    both, texts, started = optimizers(model), Texts(SEED + 1), time.monotonic()
    losses = {}  # smoothed loss of each lesson
    for step in range(1, STEPS + 1):
        lesson, batch = texts.at(step)
        loss = model(**collate(batch, tokenizer)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step)
            optimizer.step()
            optimizer.zero_grad()
        losses[lesson] = 0.95 * losses.get(lesson, loss.item()) + 0.05 * loss.item()
        if step % 50 == 0:
            shown = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            print(f"step {step:5d}  {time.monotonic() - started:4.0f} s  loss: {shown}", flush=True)


def name_class_for_older_transformers(config: Path):
    """Write a name of the tokenizer's class that transformers 4 knows. transformers 5 has written a new name."""
    content = json.loads(config.read_text("utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer()
    for label in LABELS:
        assert len(tokenizer(f" {label}{EOS}", add_special_tokens=False)["input_ids"]) <= 4, label
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer)
    model.save_pretrained(HERE / "model")
    tokenizer.save_pretrained(HERE / "model")
    name_class_for_older_transformers(HERE / "model" / "tokenizer_config.json")


if __name__ == "__main__":
    main()
