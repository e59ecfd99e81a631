"""The compared systems: how each is installed, and how its script is run."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import yaml
from infer import HERE

from glide.bench.vllm_environment import vllm_environment
from glide.condor.install import cache_dir

PROMPTVERIFY = Path(HERE).parent / "promptverify"
CONSTRAINTS = Path(HERE).parent.parent / "constraints.txt"
LIMIT_SECONDS = 300.0  # time limit of one run of a script, in seconds


@dataclass(frozen=True)
class System:
    """A system that is measured.

    Attributes:
        script: script in this folder, which is called with the arguments MODEL RECORDS OUT.
        needs: packages that pip installs for the system in a separate environment; empty if pip installs nothing.
        module: module of a system that pip cannot install, so the interpreter must already have it; empty for all other
            systems.
        vllm: whether the engine is vLLM. The script then has one more argument: the folder of vLLM's environment.
    """

    name: str
    script: str
    needs: str = ""
    module: str = ""
    vllm: bool = False


GLIDE = System("glide", "glide_sweep.py")
ENGINE = System("two processes with glide's engine", "engine_processes.py")
PROCESSES = System("two plain processes", "processes.py")
GLIDE_VLLM = System("glide, vLLM", "glide_sweep.py", vllm=True)
DATATROVE = "datatrove==0.10.1 ray==2.60.0 orjson==3.13.0 aiofiles==25.1.0 aiosqlite==0.22.1 xxhash==4.1.0"
SYSTEMS = (
    GLIDE,
    ENGINE,
    PROCESSES,
    System("Parsl HTEX", "parsl_htex.py", needs="parsl==2026.10.26"),
    System("Ray actors", "ray_actors.py", needs="ray==2.60.0"),
    System("Dask", "dask_workers.py", needs="distributed==2026.8.0"),
    System("TaskVine functions", "taskvine_functions.py", module="ndcctools.taskvine"),
    GLIDE_VLLM,
    System("vLLM run-batch", "vllm_batch.py", vllm=True),
    System("datatrove InferenceRunner, vLLM", "datatrove_runner.py", needs=DATATROVE, vllm=True),
)


class Missing(Exception):
    """A system cannot be measured here. The message tells in one sentence which system, why, and what to do."""


def interpreter(system: System, given: str) -> str:
    """Return the interpreter that runs a system's script.

    Args:
        given: interpreter for the systems that pip cannot install.

    Raises:
        Missing: the system is not installed and cannot be installed.
    """
    if system.vllm:
        try:
            vllm_environment()
        except subprocess.CalledProcessError:
            raise Missing(f"{system.name} was left out: pip cannot install vLLM; see its output.") from None
    if system.module:
        program = shutil.which(given)
        test = f"import {system.module}, torch, transformers"
        if not program or subprocess.run([program, "-c", test], capture_output=True).returncode:
            raise Missing(
                f"{system.name} was left out: {Path(given).name} cannot import {system.module}, torch and transformers,"
                f" and pip cannot install {system.module}; name another interpreter with --taskvine."
            )
        return given
    return str(environment(system)) if system.needs else sys.executable


def environment(system: System) -> Path:
    """Return the interpreter of a system's own environment. Make the environment if it does not exist.

    The environment also has the packages of glide's environment or of vLLM's, so that all systems with one engine use
    the same packages for it.

    Raises:
        Missing: pip cannot install the system.
    """
    if system.vllm:
        ours = sysconfig.get_path("purelib", vars={"base": str(vllm_environment())})
        constraints = []
    else:
        ours = sysconfig.get_path("purelib")
        constraints = ["-c", str(CONSTRAINTS)]
    key = hashlib.sha256(f"{system.needs}\n{ours}\n{CONSTRAINTS.read_text('utf-8')}".encode()).hexdigest()[:8]
    folder = cache_dir() / "peers" / f"{system.needs.split()[0].replace('==', '-')}-{key}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"peers: making an environment for {system.needs}", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, stdout=sys.stderr)
            own = sysconfig.get_path("purelib", vars={"base": str(folder)})
            (Path(own) / "ours.pth").write_text(f"{ours}\n", "utf-8")
            install = ["-m", "pip", "install", "--quiet", *constraints, *system.needs.split()]
            subprocess.run([python, *install], check=True, stdout=sys.stderr)
        except subprocess.CalledProcessError:
            raise Missing(f"{system.name} was left out: pip cannot install {system.needs}; see its output.") from None
        ready.touch()
    return python


def measure(
    system: System,
    python: str,
    records: Path,
    watch: Callable[[], None] = lambda: None,
    limit: float = LIMIT_SECONDS,
    model: Path = PROMPTVERIFY / "model",
) -> dict[str, Any]:
    """Run a system once, and return what its script has written.

    Args:
        watch: function that is called four times a second while the script runs.
        limit: time limit of the script, in seconds.
        model: folder of the model.

    Raises:
        Missing: the script failed.
    """
    out = records.with_name(f"{system.script}.json")
    out.unlink(missing_ok=True)
    log = records.with_name(f"{system.script}.log")
    with log.open("wb") as output:
        command = [python, str(Path(HERE) / system.script), str(model), str(records), str(out)]
        command += [str(vllm_environment())] if system.vllm else []
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=records.parent)
        until = time.monotonic() + limit
        try:
            while process.poll() is None and time.monotonic() < until:
                watch()
                time.sleep(0.25)
        finally:
            if process.poll() is None:  # interrupt the script, so that it stops its daemons
                process.send_signal(signal.SIGINT)
                process.wait(60)
    if process.returncode:
        sys.stderr.write(log.read_text("utf-8", "replace")[-4000:])
        raise Missing(f"{system.name} was left out: its script failed with {process.returncode}; see its output.")
    return json.loads(out.read_text("utf-8"))


def write_records(path: Path, count: int) -> None:
    """Write `count` prompts of the sweep promptverify, in the order of the sweep. After the last, begin again."""
    sweep = yaml.safe_load((PROMPTVERIFY / "sweep.yaml").read_text("utf-8"))
    claims = [json.loads(line) for line in (PROMPTVERIFY / sweep["records"]).read_text("utf-8").splitlines()]
    prompts = (prompt.format(**claim) for prompt in sweep["prompts"].values() for claim in claims)
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in islice(cycle(prompts), count)), "utf-8")
