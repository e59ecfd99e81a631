"""vLLM's CPU build in a glidein. It has an environment of its own, which takes minutes and 3.5 GB the first time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from glide.bench.vllm_environment import vllm_environment
from tests.conftest import eventually
from tests.factory_rig import FactoryProcess, entry
from tests.test_serving_programs import GENERATE, PROMPT, VERIFIER, claims, processes_with, read

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
