"""Two processes with glide's engine, each with half of the tasks. Neither glide nor HTCondor adds costs.

Usage: python engine_processes.py MODEL RECORDS OUT
"""

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context

from infer import GENERATE, WORKERS, Answer, tasks, write_answers

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
    began = time.time()
    folder, records, out = sys.argv[1:]
    all_tasks = tasks(records)
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        shares = [pool.submit(work, folder, all_tasks[worker::WORKERS]) for worker in range(WORKERS)]
        answers: list[Answer] = [([], 0.0)] * len(all_tasks)
        for worker, share in enumerate(shares):
            answers[worker::WORKERS] = share.result()
        write_answers(out, began, answers)
