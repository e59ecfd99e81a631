"""TaskVine: two workers, each with a library that keeps the model. Tasks call a function of the library.

Usage: python taskvine_functions.py MODEL RECORDS OUT
"""

import os
import subprocess
import sys
import time

began = time.time()

import ndcctools.taskvine as vine  # noqa: E402
from infer import HERE, WORKERS, tasks, write_answers  # noqa: E402


def load_model(folder):
    import os

    from infer import announce, load

    ready = load(folder)
    announce(os.getppid())  # the worker, which ends with all its processes
    return {"ready": ready}


def verdicts(folder, prompts):
    from infer import serve

    return serve(folder, prompts)


folder, records, out = sys.argv[1:]
os.environ["PYTHONPATH"] = HERE  # the workers and their libraries inherit this variable
manager = vine.Manager(port=0)
library = manager.create_library_from_functions(
    "verifier", verdicts, library_context_info=[load_model, [folder], {}], add_env=False, exec_mode="direct"
)
library.set_cores(1)
library.set_function_slots(1)
manager.install_library(library)
os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))  # it may be there
command = ["vine_worker", "--single-shot", "--cores=1", "localhost", str(manager.port)]
workers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(WORKERS)]
try:
    order = {}
    for number, task in enumerate(tasks(records)):
        call = vine.FunctionCall("verifier", "verdicts", folder, task)
        call.set_cores(1)
        order[manager.submit(call)] = number
    answers = {}
    while not manager.empty():
        if done := manager.wait(1):
            answers[order[done.id]] = done.output
        for place, worker in enumerate(workers):  # vine_factory would do the same
            if worker.poll() is not None:
                workers[place] = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    write_answers(out, began, [answers[number] for number in sorted(answers)], versions={"taskvine": vine.__version__})
finally:
    for worker in workers:
        worker.terminate()
