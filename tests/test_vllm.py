"""vLLM's CPU build in a glidein. It has an environment of its own, which takes minutes and 3.5 GB the first time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from glide.bench.vllm_environment import vllm_environment
from glide.template import FileSet, Template
from glide.vocabulary import Machine, State
from tests.conftest import eventually
from tests.factory_rig import FactoryProcess, entry
from tests.processes import processes_with
from tests.test_adapters import adapters, expected  # noqa: F401 - fixtures
from tests.test_compiled import ENTRY, log_of
from tests.test_peers import Nodes
from tests.test_serving_programs import GENERATE, PROMPT, VERIFIER, claims, read

pytestmark = [pytest.mark.pool, pytest.mark.models, pytest.mark.soak]


@pytest.fixture(scope="module")
def vllm() -> Path:
    """The environment with vLLM, made once for all runs on this machine."""
    return vllm_environment()


@pytest.fixture
def large_glideins(own_pool, tmp_path: Path) -> Iterator[FactoryProcess]:
    """A factory whose glideins have enough memory for vLLM."""
    factory = FactoryProcess(tmp_path, "large", entry("large", request={"cpus": 2, "memory": 9000, "disk": 100}))
    factory.start("--drain")
    yield factory
    factory.stop()


def test_vllm_gives_the_texts_of_the_transformers_engine(large_glideins, sweep, vllm):
    path = str(VERIFIER / "model")
    models = {
        "reference": {"engine": "transformers", "path": path, "options": {"dtype": "float32"}},
        "vllm": {
            "engine": "server", "path": path, "environment": str(vllm),
            "options": {"program": "vllm", "args": ["--dtype", "float32", "--enforce-eager"]},
        },
    }  # fmt: skip
    done = sweep.write(
        claims(2000), models=models, prompts={"plain": PROMPT}, generate=GENERATE, expect="label", glideins=1
    ).run()
    assert done.returncode == 0, done.stderr
    ours, theirs = read(sweep, "vllm"), read(sweep, "reference")
    assert len(ours) == 2000 and [each["text"] for each in ours] == [each["text"] for each in theirs]
    # vLLM does not count the token that ends a text, and the transformers engine does not, either.
    assert [each["usage"] for each in ours] == [each["usage"] for each in theirs]
    large_glideins.stop()
    eventually(lambda: not processes_with("VLLM::") and not processes_with(str(vllm)), "vLLM has ended", budget=20)


def test_vllm_serves_adapters_on_one_base(large_glideins, sweep, vllm, adapters, expected):  # noqa: F811
    model = {
        "name": "vllm-adapters", "engine": "server", "path": str(VERIFIER / "model"), "environment": str(vllm),
        "options": {"program": "vllm", "args": ["--dtype", "float32", "--max-model-len", "512"]},
    }  # fmt: skip
    paths = {name: str(path) for name, path in adapters.items()}
    sweep.write(claims(300), model=model, adapters=paths, prompts={"plain": PROMPT}, generate=GENERATE, glideins=1)
    done = sweep.run()
    assert done.returncode == 0, done.stderr
    for name, wanted in expected.items():
        texts = [each["text"] for each in sweep.results(f"{name}/plain")]
        # If a text ends in the middle of a character, vLLM leaves out its bytes.
        assert texts == [text.rstrip("\ufffd") for text in wanted], name


def test_second_node_gets_the_compiled_code_of_vllm(vllm, tmp_path):
    """vLLM compiles the model on the first node. The second one gets the code from there."""
    options = {"program": "vllm", "args": ["--dtype", "float32", "--max-model-len", "512"]}
    nodes = Nodes(tmp_path, Template.of_folder("verifier", "server", VERIFIER / "model", options))
    try:
        phases = []
        for number in range(2):
            (server,) = nodes.start(compiled_key=ENTRY, environment=FileSet(str(vllm)))
            ad = server.reached(State.WARM)
            phases.append([ad.get(name, 0.0) for name in (Machine.LOAD_SECONDS, Machine.WARM_SECONDS)])
            print(f"node {number}: load {phases[-1][0]:.1f} s, warm {phases[-1][1]:.1f} s")
            eventually(lambda n=number: nodes.ads[f"node-{n}"].get(Machine.SHARES), "the code is offered", budget=60)
        assert "compiled code came from a peer" in log_of(nodes, 1)
        print(next(line for line in log_of(nodes, 1).splitlines() if "came from a peer" in line))
        assert sum(phases[1]) < sum(phases[0])
    finally:
        for server in nodes.servers:
            server.stop()
