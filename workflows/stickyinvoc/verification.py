"""Claim verification with a real model, by each of the three systems on two nodes of different classes.

The model is a Llama with random weights. As in the paper's program, the model is called for one claim at a time. The
model's files come from a web server that stands for the distributed filesystem. The server sends RATE bytes per second
to all nodes together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from systems import KEEP, OLD_PROCESSOR, Run, entries, report_progress, run

from glide.bench.origin import origin
from glide.bench.rig import rig
from glide.bench.sticky import GENERATE, make_model
from glide.files.listing import MANIFEST
from glide.template.spec import files_of

CLAIMS = Path(__file__).parents[1] / "promptverify" / "claims.jsonl"
OPTIONS = {"dtype": "float32", "device": "cpu", "batch": 1, "batching": "static"}
RATE = 40e6
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
TINY = {**SIZES, "num_hidden_layers": 1, "vocab_size": 2000}  # sizes of a tiny model, to try the commands
NOTE = "The model is a Llama with random weights, 81 M parameters in float32."  # with SIZES
OWN_CACHE = {"folder": "$_CONDOR_SCRATCH_DIR/cache"}  # a cache for each node, although all nodes are on one machine


def runs(
    records: int,
    task: int,
    lanes: Mapping[str, int],
    repeat: int,
    sizes: Mapping[str, int] = SIZES,
) -> Iterator[list[Run]]:
    """Verify the claims with each system, each time with new glideins. Yield for each round the runs of all systems.

    Args:
        records: number of claims.
        task: number of records in a job.
        lanes: for each system, the number of lanes of a glidein.
        repeat: number of rounds.
        sizes: sizes of the model, as keys and values of transformers' LlamaConfig.
    """
    with TemporaryDirectory(prefix="stickyinvoc-") as name:
        folder = Path(name)
        files = folder / "model"
        parameters = make_model(files, **sizes)
        report_progress(f"a model of {parameters / 1e6:.0f} M parameters")
        (files / MANIFEST).write_text(json.dumps(files_of(files, files)), "utf-8")
        nodes = entries(folder, 1, OLD_PROCESSOR, cache=OWN_CACHE, request={"memory": 3000, "disk": 2000})
        for turn in range(repeat):
            found = []
            for system in KEEP:
                report_progress(f"round {turn + 1} of {repeat}: {system}, {records} claims, {task} per task")
                with origin(files, RATE) as source, rig(cores=2, entries=nodes, lanes=lanes[system]) as bench:
                    model = {"name": "verifier", "engine": "transformers", "path": source.url, "options": OPTIONS}
                    claims = texts(records)
                    changes: dict[str, Any] = {"texts": claims, "generate": GENERATE, "glideins": 2}
                    found.append(run(bench, system, model, records, lanes=lanes[system], pack=task, **changes))
            yield found


def by_system(rounds: Sequence[Sequence[Run]]) -> dict[str, list[Run]]:
    """Return the runs of each system, one from each round."""
    return {each.system: [runs[at] for runs in rounds] for at, each in enumerate(rounds[0])}


def texts(count: int) -> list[str]:
    """Return `count` prompts. Each begins with its number, so that prompts differ even if a claim is used again."""
    claims = (json.loads(line)["claim"] for line in CLAIMS.read_text("utf-8").splitlines())
    return [f"{number}: {claim}\nVerdict:" for number, claim in enumerate(islice(cycle(list(claims)), count))]
