"""Dask: two worker processes of one thread, the model kept in a global of the worker's module.

python dask_workers.py MODEL RECORDS OUT
"""

import sys
import time

from infer import WORKERS, leave_answers, load, serve, tasks

if __name__ == "__main__":
    began = time.time()
    import dask
    from distributed import Client, LocalCluster

    dask.config.set({
        # Its profiler looks at the worker's stack a hundred times a second, which computing pays for.
        "distributed.worker.profile.enabled": False,
        # Without the default MALLOC_TRIM_THRESHOLD_, which has every large tensor's memory given back and faulted in.
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1},
    })  # fmt: skip
    folder, records, out = sys.argv[1:]
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(WORKERS)
        workers = client.scheduler_info()["workers"]
        loading = [client.submit(load, folder, workers=[worker], pure=False) for worker in workers]
        answers = [client.submit(serve, folder, task, pure=False) for task in tasks(records)]
        leave_answers(out, began, client.gather(answers))
        client.gather(loading)
