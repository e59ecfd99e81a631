"""Ray: two actors that keep the model, and a pool that gives the next task to a free actor.

Usage: python ray_actors.py MODEL RECORDS OUT
"""

import os
import sys
import time

began = time.time()
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray  # noqa: E402
from infer import HERE, WORKERS, Answer, load, serve, tasks, write_answers  # noqa: E402
from ray.util import ActorPool  # noqa: E402


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)
class Verifier:
    def __init__(self, folder: str):
        self.folder = folder
        load(folder)

    def serve(self, number: int, prompts: list[str]) -> tuple[int, Answer]:
        return number, serve(self.folder, prompts)


folder, records, out = sys.argv[1:]
ray.init(
    num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000,
    runtime_env={"env_vars": {"PYTHONPATH": HERE}},
)  # fmt: skip
pool = ActorPool([Verifier.remote(folder) for _ in range(WORKERS)])
# Accept results in any order. If they had to come in the order of the tasks, an actor would wait for a slower actor.
answers = dict(pool.map_unordered(lambda actor, task: actor.serve.remote(*task), list(enumerate(tasks(records)))))
write_answers(out, began, [answers[number] for number in sorted(answers)])
ray.shutdown()
