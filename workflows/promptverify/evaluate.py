"""Compute the accuracy of each prompt of the sweep with plain transformers, without glide: `python evaluate.py`."""

import json
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
BATCH = 100


def greedy(model, tokenizer, prompts: list[str], **generate) -> list[str]:
    """Return the generated texts, in the order of the prompts.

    The prompts are sorted by length, so that batches have little padding.
    """
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        inputs = tokenizer([prompts[row] for row in rows], padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, **generate)[:, inputs["input_ids"].shape[1] :]
        for row, text in zip(rows, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
            texts[row] = text.strip()
    return texts


def main():
    torch.set_num_threads(1)
    sweep = yaml.safe_load((HERE / "sweep.yaml").read_text("utf-8"))
    records = [json.loads(line) for line in (HERE / sweep["records"]).read_text("utf-8").splitlines()]
    folder = HERE / sweep["model"]["path"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for name, prompt in sweep["prompts"].items():
        texts = greedy(model, tokenizer, [prompt.format(**record) for record in records], **sweep["generate"])
        right = sum(text == record[sweep["expect"]] for text, record in zip(texts, records, strict=True))
        print(f"{name:16s} {right / len(records):.3f}", flush=True)


if __name__ == "__main__":
    main()
