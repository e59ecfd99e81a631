"""Dask: two worker processes with one thread each. In each worker, the model stays in a global variable.

Usage: python dask_workers.py MODEL RECORDS OUT
"""

import sys
import time

from infer import WORKERS, load, serve, tasks, write_answers

if __name__ == "__main__":
    began = time.time()
    import dask
    from distributed import Client, LocalCluster, as_completed

    dask.config.set({
        # The profiler samples the worker's stack a hundred times per second, which slows computing down.
        "distributed.worker.profile.enabled": False,
        # Dask's default for this setting also has MALLOC_TRIM_THRESHOLD_, which is left out here. With it, a process
        # returns the memory of every large tensor to the system, and must page the memory in again.
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1},
    })  # fmt: skip
    folder, records, out = sys.argv[1:]
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(WORKERS)
        workers = client.scheduler_info()["workers"]
        # If a worker is lost, its result is lost, too, and another worker computes it again.
        loading = [
            client.submit(load, folder, workers=[worker], allow_other_workers=True, pure=False) for worker in workers
        ]
        answers = [client.submit(serve, folder, task, pure=False) for task in tasks(records)]
        found = {}
        # Fetch each result when it is there, and release it. If a worker is lost, Dask computes all its results again
        # that are not released.
        for future, answer in as_completed(answers, with_results=True):
            found[future.key] = answer
            future.release()
        write_answers(out, began, [found[future.key] for future in answers])
        client.gather(loading)
