"""A pool of two nodes, one of which ends every glidein."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from glide.condor import EmbeddedPool
from glide.condor.access_point import job_file_value
from glide.template import Template
from glide.vocabulary import Job, Machine, State
from tests.conftest import eventually
from tests.factory_rig import DESCRIPTION, FactoryProcess, command, entry

pytestmark = pytest.mark.pool

# A second startd under another name. It has room for one glidein.
SECOND_NODE = {
    "DAEMON_LIST": "MASTER, COLLECTOR, NEGOTIATOR, SCHEDD, STARTD, BADSTARTD", "DC_DAEMON_LIST": "+ BADSTARTD",
    "BADSTARTD": "$(STARTD)", "BADSTARTD_ARGS": "-f -local-name bad", "BADSTARTD_LOG": "$(LOG)/BadStartLog",
    "BADSTARTD_ENVIRONMENT": '"_CONDOR_NETWORK_HOSTNAME=bad.node _CONDOR_NUM_CPUS=1"', "STARTD.bad.STARTD_NAME": "bad",
    "STARTD.bad.STARTD_LOG": "$(LOG)/BadStartLog", "STARTD.bad.EXECUTE": "$(LOCAL_DIR)/execute",
}  # fmt: skip
PYTHON = """#!/bin/sh
if grep -q '^Machine = "bad.node"' "$_CONDOR_MACHINE_AD"; then echo "the GPU has fallen off the bus" >&2; exit 1; fi
exec {python} "$@"
"""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[EmbeddedPool]:
    pool = EmbeddedPool(tmp_path / "home")
    try:
        pool.up(cores=3, settings=SECOND_NODE)
        eventually(lambda: "bad.node" in pool.tool("condor_status", "-af", "Machine"), "both nodes are there")
        yield pool
    finally:
        pool.down()


def test_factory_avoids_failing_node_and_jobs_finish_elsewhere(nodes: EmbeddedPool, tmp_path: Path):
    environment = {**os.environ, **nodes.environment(), "GLIDE_HOME": str(nodes.home)}
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    template = Template("nodes", "noop", options={"record_seconds": 0.2})
    for number in range(8):
        lines = (json.dumps({"custom_id": str(each), "prompt": "text"}) + "\n" for each in range(60))
        (tmp_path / f"records-{number}.jsonl").write_text("".join(lines))
    further = f"My.{Job.SPEC} = {job_file_value(template.to_json())}\nMy.{Job.WANTED} = 4\nqueue 8"
    text = DESCRIPTION.replace("\nqueue", f"\n{further}").replace("$(digest)", template.digest)
    (tmp_path / "ask.sub").write_text(text.replace("$(model)", template.model))
    assert command("submit", str(tmp_path / "ask.sub"), environment=environment).returncode == 0

    factory = FactoryProcess(
        tmp_path, "nodes", entry("both", max_glideins=4, python=str(python)), environment=environment
    )
    factory.start()
    try:
        assert "bad.node" in factory.says("not on bad.node, where glideins fail")
        finished = f"{Job.ENTRY} =?= undefined && JobStatus == 4"
        eventually(
            lambda: len(nodes.tool("condor_q", "-constraint", finished, "-af", "ProcId").split()) == 8,
            "the other node has done all jobs",
        )
        assert State.WARM in nodes.tool("condor_status", "-af", Machine.STATE)
        told = json.loads(command("factory", "status", "--json", environment=environment).stdout)
    finally:
        factory.stop()
    (seen,) = told["sites"][0]["entries"]
    assert seen["avoided"] == ["bad.node"] and "fallen off the bus" in " ".join(seen["last_failure"]["last_words"])
    glideins = nodes.tool("condor_q", "-constraint", f"{Job.ENTRY} =!= undefined", "-af", "LastRemoteHost")
    places = Counter(line.split()[0].rpartition("@")[2] for line in glideins.splitlines() if "@" in line)
    assert places["bad.node"] == 2, places
