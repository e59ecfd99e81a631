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
     "Of StickyInvoc's 140 s, inference takes 122 s, its two nodes need 14 s until they have loaded, and nodes wait for"
     " 4 s. Without the last two, the ratios would be 3.7 and 1.8, and the paper's seconds make 3.6 and 1.8. A node"
     " runs only 20 tasks here, and 75 in the paper, so its single load counts more."),
    ("rq4", "completed inferences in finished tasks",
     "Of what the nodes can compute, StickyI/O loses 8% to loading, and 11 to 13% to tasks that were not finished when"
     " their node was lost; that makes 1.23 to 1.25. In finished tasks it does 56,000 inferences here and 46,000 in the"
     " paper, and StickyInvoc 70,000 and 62,900. The paper's GPUs arrived at other times, which are not known"
     " ([simulation](#simulation))."),
    ("rq5", "R² of records done within",
     "The driver sees new results only every one to four seconds, and one to three seconds after they were computed. So"
     " a count within 10 s is uneven, most of all with many lanes that come and go. Within intervals of about 30 s, R²"
     " is 0.997 to 0.999."),
    ("bt", "mean launch with",
     "All services start on the two cores of one machine, and their jobs at one access point; in the paper each service"
     " had a GPU of its own."),
    ("bt", "publish over launch",
     "A startd collects changes for a second before it sends its ads, and with one or two services a launch is shorter"
     " than this second."),
    ("bt", "share of launch and publish",
     "A service loads only a small model here, or waits for 10 s as if it loaded one, and many services start on the"
     " two cores of one machine."),
    ("rt", "communication over",
     "Client and server are on the same machine here, so a request only passes a socket or some files, which takes less"
     " time than the server's own work; between the paper's nodes it takes 0.06 ms."),
    ("it", "inference over",
     "Sixteen engines, the clients and `glide serve` share two cores, so a request waits in `glide serve` as long as"
     " its inference takes, or longer."),
    ("it", "what a remote service",
     "An inference takes only 4 to 8 ms, as this model has 0.8 M parameters and the paper's 8 B, and the network's"
     " latency alone adds 0.94 ms."),
)  # fmt: skip
HEAD = """# Results

`make docs` writes this page from the JSON of the experiments. The command of each experiment is below its title.
Compare ratios, not seconds: our machines are small and shared. A number with brackets is the median of its runs, with
the lowest and the highest value; one without comes from a single run. A goal is the paper's number or a number that we
chose. A number that misses its goal is in **bold**; a number without a goal never is. The first table also has the
numbers of earlier runs of the same commands, in part on other machines; each experiment names them at its end. All else
is from the last run. With `--out docs/results`, a command writes its numbers where `make docs` reads them. `python` is
the checkout's, `.venv/bin/python`.
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
    """All numbers that somebody else has measured, too, in one table."""
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
    return ["## Beside the papers' numbers\n", table(columns, rows), *why] if rows else []


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
    goal = compared.paper if compared.goal is None else compared.goal
    meant = f"{GOALS[compared.better]} {number(goal, compared.unit)}" if compared.better else ""
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
