"""A real embedded pool with a real factory, shared by the tests that need one, and stopped whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from glide.condor import AccessPoint, Collector, EmbeddedPool, bindings
from glide.template import Template
from tests.chirp_rig import Starter
from tests.models import Plain, tiny_llama

SITE = {
    "site": "testing",
    "interval": 1,
    "entries": [
        {"name": "here", "max_glideins": 6, "request": {"memory": 600, "disk": 100}, "idle_seconds": 15, "price": 3.6},
    ],
}


# Files whose tests mostly wait, the longest first: begun last, one of them would keep a single worker busy at the end.
LONGEST = (
    "test_gpu_kit.py",
    "test_docs.py", "test_two_pools.py", "test_ssh.py", "test_web.py", "test_end_to_end.py", "test_sticky.py",
    "test_report.py", "test_doctor.py", "test_peers.py", "test_factory.py", "test_outage.py", "test_session.py",
    "test_serve_pool.py", "test_hybrid.py",
    "test_environment.py", "test_container.py", "test_openai.py", "test_files.py", "test_server_files.py",
    "test_again.py", "test_poison.py", "test_fuzz.py", "test_nodes.py", "test_documented.py",
)  # fmt: skip
# Threads of several processes that wait for each other on two cores take ten times as long as one thread each. HTCondor
# sets the same for jobs that request one CPU.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell lets its background jobs ignore this signal, and the commands that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Hundreds of commands are run, each of which would compile the whole program first.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(LONGEST)))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzz", "tests/test_fuzz.py: how much to kill, and under what load")
    group.addoption("--kills", type=int, default=8)
    group.addoption("--records", type=int, default=1500)
    group.addoption("--seed", type=int, default=1)


@contextmanager
def _in_force(home: Path, cores: int) -> Iterator[EmbeddedPool]:
    """An embedded pool of our own: while this lasts, the one that commands and bindings mean."""
    pool = EmbeddedPool(home)
    before = dict(os.environ)
    try:
        os.environ["GLIDE_HOME"] = str(home)
        pool.up(cores=cores)
        os.environ.update(pool.environment())
        bindings.reload()  # an earlier test may have had them read another's
        yield pool
    finally:
        pool.down()
        os.environ.clear()
        os.environ.update(before)
        if "CONDOR_CONFIG" in before:
            bindings.reload()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPool]:
    """An embedded pool that offers more CPUs than there are: most glideins here only sleep."""
    with _in_force(tmp_path_factory.mktemp("glide-home"), cores=8) as pool:
        yield pool


@contextmanager
def factory_of(pool: EmbeddedPool) -> Iterator[Path]:
    """A factory that runs for as long as this lasts; the value is its log."""
    site = pool.home / "site.yaml"
    site.write_text(yaml.safe_dump(SITE))
    log = pool.home / "factory.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "glide", "factory", "run", "--drain", "-c", str(site)], stdout=output, stderr=output
        )
    try:
        yield log
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def factory(pool: EmbeddedPool) -> Iterator[Path]:
    """A running factory. Of a module, as others have factories of their own on the same pool."""
    with factory_of(pool) as log:
        yield log


@pytest.fixture
def own_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPool]:
    """A pool where nobody else's factory serves what a test asks for; it is the one in force meanwhile."""
    with _in_force(tmp_path_factory.mktemp("own") / "home with spaces", cores=4) as pool:
        yield pool


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedPool, EmbeddedPool]]:
    """An overlay pool and an outer one."""
    from tests.two_pools import two_pools  # which imports this file

    with two_pools(tmp_path_factory.mktemp("pools")) as pools:
        yield pools


@pytest.fixture
def access_point(pool: EmbeddedPool) -> AccessPoint:
    return AccessPoint()


@pytest.fixture
def collector(pool: EmbeddedPool) -> Collector:
    return Collector()


@pytest.fixture
def start(tmp_path: Path):
    """Start model servers that do not outlive the test."""
    from tests.server_rig import Server  # which imports this file

    servers: list[Server] = []

    def start(template: Template | None = None, supply: dict[str, Any] | None = None, **options: Any) -> Server:
        template = template or Template("fake", "noop", options=options)
        servers.append(Server(tmp_path / f"{len(servers)}", template, **supply or {}))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def serving(tmp_path: Path, start: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Start `glide serve` for a model, with model servers that have loaded it. Stop all of them after the test."""
    from tests.serve_rig import LocalWorker, Serving, offered, ready  # which imports this file

    running: list[Serving] = []

    def begin(model: Any = None, servers: int = 1, **settings: Any) -> Serving:
        model = model or offered()
        worker = LocalWorker([start(model.template) for _ in range(servers)])
        for server in worker.servers:
            server.reached("Warm")
        running.append(Serving(tmp_path / "serve", [model], worker, **settings))
        return ready(running[-1], lanes=1 if model.idle_seconds is None else 0)

    yield begin
    for each in running:
        each.stop()
        each.worker.stop()


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    """A stand-in for a job's starter, which serves chirp until the test ends."""
    starter = Starter(tmp_path / "spool")
    yield starter
    starter.stop()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def plain(llama: Path) -> Plain:
    """What plain transformers makes of a prompt with it."""
    return Plain(llama)


class SweepFolder:
    """A folder with a sweep file in it, and what happens when it is run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / "sweep.yaml"
        self.out = folder / "results"
        self.started: list[subprocess.Popen[str]] = []

    def write(self, records: list[dict[str, Any]], **changes: Any) -> SweepFolder:
        """A noop sweep of these records; `changes` replace its keys, and `models` also replaces `model`."""
        (self.folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        sweep = {
            "name": self.folder.name[:20].strip("-_"),
            **({} if "models" in changes else {"model": {"name": "noop", "engine": "noop"}}),
            "records": "records.jsonl",
            "prompts": {"plain": "{text}"},
            "out": str(self.out),
        }
        self.file.write_text(yaml.safe_dump(sweep | changes, sort_keys=False, allow_unicode=True))
        return self

    def start(self, command: str = "run", *options: str) -> subprocess.Popen[str]:
        """The command line, started."""
        process = subprocess.Popen(
            [sys.executable, "-m", "glide", "sweep", command, str(self.file), *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, command: str = "run", *options: str) -> subprocess.CompletedProcess[str]:
        """The command line, run to its end."""
        process = self.start(command, *options)
        output, errors = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def results(self, prompt: str = "plain") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / prompt / "results.jsonl").read_text().splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text())


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[SweepFolder]:
    """A folder whose sweeps do not outlive the test: a failing one would leave the others no room."""
    sweep = SweepFolder(tmp_path)
    yield sweep
    for process in sweep.started:
        if process.poll() is None:
            process.terminate()
            process.communicate()


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that lets a test import the modules of one folder of workflows/.

    They are forgotten after the test, because other folders have modules with the same names.
    """
    folder = Path(__file__).resolve().parents[1] / "workflows"
    before = set(sys.modules)
    yield lambda name: monkeypatch.syspath_prepend(str(folder / name))
    for name in sys.modules.keys() - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


def eventually(condition: Callable[[], Any], what: str, budget: float = 90.0) -> Any:
    """Wait until the condition gives something true, and return it; the budget only bounds a failing test."""
    deadline = time.monotonic() + budget
    while True:
        began = time.monotonic()
        if found := condition():
            return found
        now = time.monotonic()
        assert now < deadline, f"never happened: {what}"
        time.sleep(max(0.1, 2 * (now - began)))  # a look may be a command, which would take a core for itself
