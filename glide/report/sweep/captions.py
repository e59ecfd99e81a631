"""What each figure shows, in a sentence or two, with the finding in numbers; from the account's document alone."""

from __future__ import annotations

from typing import Any

from glide.report.sweep.timeline import UNKNOWN

Document = dict[str, Any]


def progress(told: Document) -> str:
    counts, lanes = told["counts"], told["lanes"]
    lost = [glidein for glidein in told["glideins"] if glidein["end"] == "lost"]
    text = (
        f"Completed records (above) and lanes (below) over time: {counts['done']:,} of {counts['records']:,} records in"
        f" {told['seconds']:,.1f} s, {counts['records_per_second']:,.1f} a second; at most {lanes['connected']} lanes"
        f" were connected, {lanes['warm']} of them warm. "
    )
    if lost or counts["evictions"]:
        text += f"{_number(len(lost), 'glidein')} of {len(told['glideins'])} {_were(len(lost))} lost, "
        text += f"with {_number(counts['evictions'], 'job')} (triangles)."
    else:
        text += "No glidein was lost."
    if told["counts"]["runs"] > 1:
        text += " The clock stands still where nobody drove the sweep (dashed lines)."
    return text


def tasks(told: Document) -> str:
    each = told["tasks"]
    return (
        f"Time of the {each['count']:,} jobs whose results came home (left); half of all jobs carried no more than"
        f" {_number(each['median_records'], 'record')}. Half took no more than"
        f" {each['median_s']:.3g} s, one in twenty more than {each['p95_s']:.3g} s, the longest"
        f" {each['longest_s']:.3g} s."
        f" Right: the engine's time for a record, {1e3 * each['record_median_s']:.3g} ms at the median;"
        " records of one call share its time equally."
    )


def breakdown(told: Document) -> str:
    jobs, glideins = told["spent"]["jobs"], told["spent"]["glideins"]
    before = sum(glideins[phase] for phase in ("Fetching", "Importing", "Loading", "Warming"))
    return (
        f"Where time went. Jobs: {_share(jobs, 'waiting')} in the queue, where they are kept in stock, and"
        f" {_share(jobs, 'engine')} in the engine; while they wait for it, it serves the glidein's other lanes, or they"
        f" bring their results home. Glideins:"
        f" {_percent(before, glideins)} to become warm, {_share(glideins, 'engine')} computing,"
        f" {_share(glideins, 'warm, idle')} warm and idle."
    )


def goodput(told: Document) -> str:
    text = []
    for device, spent in told["goodput"].items():
        name = "glideins that never were warm" if device == UNKNOWN else device
        lost = f", {_share(spent, 'lost')} was lost with evictions" if spent["lost"] else ", nothing was lost"
        text.append(f"{name}: {_share(spent, 'productive')} productive, {_share(spent, 'loading')} loading{lost}")
    return f"What the lanes' time was spent on, from when they were connected. {'; '.join(text)}."


def glideins(told: Document, shown: int) -> str:
    every = told["glideins"]
    ends = {end: sum(each["end"] == end for each in every) for end in ("lost", "failed", "left")}
    fates = ", ".join(f"{count} {end}" for end, count in ends.items() if count)
    warm = sorted(each["warm_after_s"] for each in every if each["warm_after_s"] is not None)
    text = f"What each glidein did when. {_number(len(every), 'glidein')}"
    text += f": {fates}, {len(every) - sum(ends.values())} there to the end" if fates else ", all there to the end"
    text += f"; warm after {warm[0]:.3g} to {warm[-1]:.3g} s." if warm else "; none became warm."
    if shown < len(every):
        text += f" {len(every) - shown} are not shown: these are first those that were lost or failed, then the slowest"
        text += " to become warm."
    return text


def accuracy(told: Document) -> str:
    ranked = sorted(told["accuracy"].items(), key=lambda item: -item[1]["accuracy"])
    (best, first), rest = ranked[0], ranked[1:]
    text = f"Accuracy by prompt with Wilson's 95 % confidence interval. Best is {best}: {first['accuracy']:.1%}"
    text += f" ({first['low']:.1%} to {first['high']:.1%} of {first['done']:,} records)"
    if not rest:
        return f"{text}."
    second, score = rest[0]
    apart = "the intervals do not overlap" if score["high"] < first["low"] else "the intervals overlap"
    return f"{text}; next is {second} with {score['accuracy']:.1%}, and {apart}."


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _percent(seconds: float, spent: dict[str, float]) -> str:
    whole = sum(spent.values())
    share = seconds / whole if whole else 0.0
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def _share(spent: dict[str, float], kind: str) -> str:
    return _percent(spent[kind], spent)
