"""Two plain processes, each with half of the tasks. No system adds costs to plain transformers.

Usage: python processes.py MODEL RECORDS OUT
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from infer import WORKERS, Answer, serve, tasks, write_answers


def work(folder: str, mine: list[list[str]]) -> list[Answer]:
    return [serve(folder, task) for task in mine]


def run(work: Callable[[str, list[list[str]]], list[Answer]]) -> None:
    """Compute the tasks in processes, and write the measured times.

    Args:
        work: function that computes the tasks of one process. Its arguments are the model's folder and the tasks.
    """
    began = time.time()
    folder, records, out = sys.argv[1:]
    all_tasks = tasks(records)
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        shares = [pool.submit(work, folder, all_tasks[worker::WORKERS]) for worker in range(WORKERS)]
        answers: list[Answer] = [([], 0.0)] * len(all_tasks)
        for worker, share in enumerate(shares):
            answers[worker::WORKERS] = share.result()
        write_answers(out, began, answers)


if __name__ == "__main__":
    run(work)
