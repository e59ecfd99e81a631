"""vLLM's run-batch: two workers, and each starts the command with one file after the other.

Each worker has one file. If workers are killed, files are smaller, because a killed command computes its file again.

Usage: python vllm_batch.py MODEL RECORDS OUT VLLM
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from math import ceil
from pathlib import Path

from infer import WATCH_VARIABLE, WORKERS, announce, prompts_of, write_measurement
from vllm_workers import SAMPLING, arguments, counted

from glide.bench.vllm_environment import VERSION

SMALL_FILE = 1000  # number of prompts in a file, if workers are killed
TEMPLATE = "{{ bos_token }}{{ messages[0]['content'] }}"  # run-batch takes chats only, and the model is none for chats


def write_requests(path: Path, prompts: list[str]) -> None:
    lines = [
        {
            "custom_id": str(number), "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "verifier", "messages": [{"role": "user", "content": prompt}], **SAMPLING},
        }
        for number, prompt in enumerate(prompts)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def compute(folder: str, requests: Path) -> list[str]:
    """Compute a file, and return its texts. If the command is killed, start it again, as a batch system would do."""
    out = requests.with_suffix(".out")
    command = [
        "vllm", "run-batch", "-i", str(requests), "-o", str(out), "--model", folder, "--served-model-name", "verifier",
        "--chat-template", TEMPLATE, *arguments(),
    ]  # fmt: skip
    while True:
        process = subprocess.Popen(command)
        announce(process.pid)
        if process.wait() > 0:
            raise RuntimeError(f"vllm run-batch failed with {process.returncode}")
        if process.returncode == 0:
            break
    answers = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    texts = {
        int(answer["custom_id"]): answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers
    }
    return [texts[number] for number in sorted(texts)]


if __name__ == "__main__":
    began = time.time()
    folder, records, out, vllm = sys.argv[1:]
    prompts = prompts_of(records)
    size = SMALL_FILE if WATCH_VARIABLE in os.environ else ceil(len(prompts) / WORKERS)
    with counted(vllm) as ready, tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(WORKERS) as pool:
        files = []
        for start in range(0, len(prompts), size):
            files.append(Path(name) / f"{start}.jsonl")
            write_requests(files[-1], prompts[start : start + size])
        texts = list(chain.from_iterable(pool.map(lambda file: compute(folder, file), files)))
        write_measurement(out, began, ready(), texts, {"vllm": VERSION})
