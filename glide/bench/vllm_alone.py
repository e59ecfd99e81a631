"""Measure vLLM without a server: `python vllm_alone.py SETTINGS`. This script runs in an environment with vLLM.

The settings and the result are JSON, as in glide.bench.engine_run.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    settings = json.loads(sys.argv[1])
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process is the fastest way on a CPU
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    from vllm import LLM, SamplingParams

    started = time.monotonic()
    llm = LLM(settings["path"], dtype=settings["dtype"], enforce_eager=True, generation_config="vllm")
    warm = time.monotonic() - started
    prompts = json.loads(Path(settings["prompts"]).read_text("utf-8"))
    sampling = SamplingParams(temperature=0, max_tokens=settings["generate"]["max_new_tokens"])
    llm.generate(prompts[: settings["trial"]], sampling, use_tqdm=False)
    rates = []
    for _ in range(settings["repeat"]):
        started = time.monotonic()
        found = llm.generate(prompts, sampling, use_tqdm=False)
        rates.append(len(prompts) / (time.monotonic() - started))
    texts = [each.outputs[0].text for each in found]
    Path(settings["result"]).write_text(
        json.dumps({"rates": rates, "warm_s": warm, "texts": texts, "errors": 0}), "utf-8"
    )
    os._exit(0)


if __name__ == "__main__":
    main()
