"""Two processes with glide's engine, each with half of the tasks. Neither glide nor HTCondor adds costs.

Usage: python engine_processes.py MODEL RECORDS OUT
"""

import sys
import time
from itertools import chain

import processes
from infer import GENERATE, Answer

from glide.bench.engine_run import Outcomes, run
from glide.server.engines import EngineRecord, build
from glide.template import Template


def work(folder: str, mine: list[list[str]]) -> list[Answer]:
    engine = build(Template("verifier", "transformers", folder, options={"dtype": "float32"}), python=sys.executable)
    engine.prepare()
    engine.load(folder, lambda state: None)
    ready = time.time()
    prompts = enumerate(chain.from_iterable(mine))
    found = run(engine, [EngineRecord(number, prompt, GENERATE) for number, prompt in prompts], Outcomes())
    texts = iter(found[number].text for number in range(len(found)))
    return [([next(texts) for _ in task], ready) for task in mine]


if __name__ == "__main__":
    processes.run(work)
