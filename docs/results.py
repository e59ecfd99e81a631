"""Writes docs/results.md from what the experiments have left in docs/results. `make docs`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from glide.report.experiment import Comparison, Measurement, number, table

FOLDER = Path(__file__).with_name("results")
EARLIER = FOLDER / "earlier"  # files NAME-COMMIT.json, from earlier runs of the same commands
PAGE = Path(__file__).with_name("results.md")
# In the order in which the papers ask; what is not here comes after.
ORDER = (
    "rq1", "rq2", "rq3", "rq4", "rq5", "simulation", "predicted", "bt", "rt", "it", "peers", "kills", "engines", "gpu",
    "soak",
)  # fmt: skip
GOALS = {"more": "≥", "less": "≤"}
# Why goals are missed: the experiment, the beginning of `what` in its comparisons, and one sentence.
REASONS = (
    ("rq1", "longer tasks",
     "In the last run, StickyInvoc takes 140 s: 122 s of inference, 14 s until its two nodes have loaded, and 4 s in"
     " which nodes wait. A node runs only 20 tasks here, and 75 in the paper, so its single load counts more. With 122"
     " s instead of 140 s, and the others as they are, the ratios would be 3.7 and 1.8; the paper's seconds make 3.6"
     " and 1.8."),
    ("rq4", "completed inferences in finished tasks",
     "Of the records that the nodes can compute, StickyI/O loses 8% to loading, and 11 to 13% to tasks that were not"
     " finished when their node was lost; StickyInvoc loses 1% to such tasks. That makes 1.23 to 1.25. In finished"
     " tasks, StickyI/O does 56,000 to 57,000 inferences here and 46,000 in the paper, and StickyInvoc 70,000 and"
     " 62,900. One possible reason is that the paper's GPUs arrived later, but the paper does not say when"
     " ([simulation](#simulation))."),
    ("rq5", "R² of records done within",
     "The driver sees new results every one to two seconds, at most every four, and one to three seconds after they"
     " were computed. So a count within 10 s is uneven. Within intervals of about 30 s, of which a run has only 3 to 6,"
     " R² is 0.997 to 0.999."),
    ("bt", "mean launch with",
     "All services start on the two cores of one machine: a launch takes 0.7 s if it is alone, and each further"
     " service adds 0.3 to 0.4 s to the mean."),
    ("bt", "publish over launch",
     "A startd collects changes for a second before it sends its ads, and the launch of a single service takes only"
     " 0.7 to 0.8 s."),
    ("bt", "launch and publish together",
     "The parts that should be negligible are not longer than 2 s with one service, but init is short: a noop service"
     " waits for only 10 s, and the small model of transformers is loaded in 2.1 to 2.5 s. With 32 noop services on two"
     " cores, a launch takes 9 s."),
    ("kills", "prompts begun again per kill",
     "When a worker is killed, all prompts in its engine are begun again. Under glide, engines compute more prompts at"
     " a time: 80 to 96 in the transformers engine, where plain transformers compute batches of 32, and up to 256 in"
     " vLLM, which has 128 by default. The lower ratio is from a short run of glide and Dask alone."),
    ("rt", "communication over",
     "The server itself works for 0.6 to 1.8 ms on one request, and communication takes 0.3 to 0.8 ms. The latency"
     " between the paper's nodes, 0.06 ms each way, would not change this; in the paper, the server's work is"
     " negligible against this latency."),
    ("it", "inference over",
     "With 16 clients, `glide serve`, its connections and the model servers together take 1.0 to 1.5 times as long as"
     " the inference; with local services, the model servers take 0.2 to 0.3 times as long. All of them share two"
     " cores."),
    ("it", "additional time of a request to a remote",
     "An inference takes only 4 to 8 ms, as the model has 0.8 M parameters (the paper's has 8 B) and generates 4"
     " tokens at most. Of the additional 2.3 ms, the latency takes 1.1 ms, and HTTP most of the rest."),
    ("it", "additional time of a request to a live",
     "Inference alone takes 0.7 to 2.0 ms longer than with a local service, with the same model and engine; why is not"
     " known. The other parts take 0.2 to 0.4 ms longer."),
)  # fmt: skip
HEAD = """# Results

`make docs` writes this page from the JSON of the experiments. The command of each experiment is below its title.
Compare ratios, not seconds: our machines are small and shared. In `2.26× (2.16–2.73)`, the first number is the median
of several runs (of two runs, their mean), and the brackets have the lowest and the highest number. A number without
brackets comes from a single run. A goal is the paper's number or a number that we chose. A number that misses its goal
is in **bold**; a number without a goal never is. The first table also has the numbers of earlier runs of the same
commands, in part on other machines; each experiment names them at its end. All other tables and sentences, also "here
this is true", are about the last run alone. With `--out docs/results`, a command writes its numbers where `make docs`
reads them. `python` is the checkout's, `.venv/bin/python`.

A record is one inference. The experiments rq1 to rq5 compare three systems. With create-destroy, a node keeps nothing
between two tasks; with StickyI/O, it keeps the model's files; with StickyInvoc, which is glide, it keeps the loaded
model. In bt, rt and it, a service is a model server: a local one, a remote one (its model is behind a network latency),
or a live one (behind `glide serve`).
"""


def page() -> str:
    """The whole text."""
    told = [_read(file) for file in FOLDER.glob("*.json")]
    places = {name: place for place, name in enumerate(ORDER)}
    told.sort(key=lambda each: (places.get(each["name"], len(ORDER)), each["name"]))
    return "\n".join([HEAD, *_compared(told), *map(_section, told)])


def _read(file: Path) -> dict[str, Any]:
    """Return an experiment. Its comparisons also have the numbers of earlier runs that measured the same thing."""
    earlier = [json.loads(each.read_text("utf-8")) for each in sorted(EARLIER.glob(f"{file.stem}-*.json"))]
    last = json.loads(file.read_text("utf-8"))
    for row in last["compared"]:
        row["here"] = row["here"] and [*_numbers(earlier, row), *row["here"]]
    return {**last, "earlier": earlier}


def _numbers(runs: Iterable[dict[str, Any]], row: dict[str, Any]) -> Iterator[float]:
    for run in runs:
        for each in run["compared"]:
            if (each["what"], each["unit"]) == (row["what"], row["unit"]):
                yield from each["here"]


def _compared(told: list[dict[str, Any]]) -> list[str]:
    """All numbers that a paper has, too, or that have a goal, in one table."""
    rows, reasons = [], {}
    for each in told:
        for row in each["compared"]:
            here, meant = _here(row)
            simulated = number(row["simulated"], row["unit"]) if row["simulated"] is not None else ""
            paper = number(row["paper"], row["unit"]) if row["paper"] is not None else ""
            link = f"[{each['name']}](#{each['name']})"
            rows.append((link, row["what"], paper, meant, here, simulated))
            if here.startswith("**"):
                reasons[f"- {link}: {_reason(each['name'], row['what'])}"] = None  # several rows may have one reason
    columns = ("experiment", "what", "paper", "goal", "here", "simulated")
    why = ["Why goals are missed:\n", *reasons, ""] if reasons else []
    return ["## Numbers beside papers and goals\n", table(columns, rows), *why] if rows else []


def _reason(experiment: str, what: str) -> str:
    """Return the sentence that explains why a goal is missed."""
    found = [sentence for name, start, sentence in REASONS if name == experiment and what.startswith(start)]
    if len(found) != 1:
        raise SystemExit(f"{experiment}: {what!r} misses its goal; REASONS must have one sentence for it")
    return found[0]


def _here(row: dict[str, Any]) -> tuple[str, str]:
    """Return the number that was measured here, in bold if it misses its goal, and the goal."""
    here = Measurement(tuple(row["here"]), row["unit"]) if row["here"] else None
    compared = Comparison(**{**row, "here": here})
    meant = f"{GOALS[compared.better]} {number(compared.aim, compared.unit)}" if compared.better else ""
    return (str(here) if compared.met else f"**{here}**") if here else "", meant


def _section(each: dict[str, Any]) -> str:
    lines = [
        f"## {each['name']}\n",
        f"**{each['title']}.** {each['question']}\n",
        f"`{each['command']}`\n",
        table(each["columns"], each["rows"]),
        f"![{each['title']}](results/{each['name']}.png)\n",
        *(f"- {note}" for note in each["notes"]),
        "",
        f"{_run(each)}; {', '.join(' '.join(package) for package in each['versions'].items())}.\n",
    ]
    if each["earlier"]:
        lines.append(f"In the first table also: {'; '.join(map(_run, each['earlier']))}.\n")
    return "\n".join(lines)


def _run(each: dict[str, Any]) -> str:
    machine = each["machine"]
    gpus = f"{len(machine['gpus'])} × {machine['gpus'][0]}" if machine["gpus"] else "no GPU"
    return (
        f"{each['date']}, commit {each['commit']}, {each['seconds']:,} s on {machine['cpu']}, {machine['cores']} cores,"
        f" {machine['memory_gb']} GB, {gpus}"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
