"""The captions of the figures in a sweep's report.

A caption describes its figure, and gives the main numbers of the report's JSON document.
"""

from __future__ import annotations

from typing import Any

from glide.report.sweep.timeline import UNKNOWN

Document = dict[str, Any]


def progress(report: Document) -> str:
    counts, lanes = report["counts"], report["lanes"]
    lost = [glidein for glidein in report["glideins"] if glidein["end"] == "lost"]
    text = (
        f"Completed records (above) and lanes (below) over time: {counts['done']:,} of {counts['records']:,} records in"
        f" {report['seconds']:,.1f} s, {counts['records_per_second']:,.1f} per second. At most {lanes['connected']}"
        f" lanes were connected, and at most {lanes['warm']} were warm. "
    )
    if lost or counts["evictions"]:
        text += f"{_number(len(lost), 'glidein')} of {len(report['glideins'])} {_were(len(lost))} lost, "
        text += f"with {_number(counts['evictions'], 'job')} (triangles)."
    else:
        text += "No glidein was lost."
    if report["counts"]["runs"] > 1:
        text += " Time does not advance while no driver runs (dashed lines)."
    return text


def tasks(report: Document) -> str:
    each = report["tasks"]
    return (
        f"Left: run time of the {each['count']:,} jobs whose results were gathered. The median is"
        f" {each['median_s']:.3g} s, the 95th percentile {each['p95_s']:.3g} s, the maximum {each['longest_s']:.3g} s."
        f" The median job carried {_number(each['median_records'], 'record')}."
        f" Right: the engine's time per record, with a median of {1e3 * each['record_median_s']:.3g} ms. Records of"
        " one engine call share its time equally."
    )


def breakdown(report: Document) -> str:
    jobs, glideins = report["spent"]["jobs"], report["spent"]["glideins"]
    before = sum(glideins[phase] for phase in ("Fetching", "Importing", "Loading", "Warming"))
    return (
        f"Where time went. Jobs: {_share(jobs, 'waiting')} in the queue (some jobs always wait there, so that lanes"
        f" find work at once), and {_share(jobs, 'engine')} in the engine. The rest of a running job's time is waiting"
        f" for the engine, which serves other lanes of the glidein meanwhile, and sending results. Glideins:"
        f" {_percent(before, glideins)} until warm, {_share(glideins, 'engine')} computing,"
        f" {_share(glideins, 'warm, idle')} warm and idle."
    )


def goodput(report: Document) -> str:
    text = []
    for device, spent in report["goodput"].items():
        name = _device(device)
        lost = f", {_share(spent, 'lost')} lost with evictions" if spent["lost"] else ", nothing lost"
        text.append(f"{name}: {_share(spent, 'productive')} productive, {_share(spent, 'loading')} loading{lost}")
    return f"How the lanes' time was used while they were connected. {'; '.join(text)}. {_usage(report['usage'])}"


def _usage(usage: Document) -> str:
    """Return a sentence with the device-hours, and with the costs and the energy if they are known."""
    text = []
    for device, used in usage.items():
        hours = used["device_hours"]
        each = f"{_amount(sum(hours.values()))} hours of {_device(device)}"
        each += f" ({_amount(hours['productive'])} productive)"
        each += "" if used["cost"] is None else f", cost {_amount(used['cost'])}"
        each += "" if used["kwh"] is None else f", {_amount(used['kwh'])} kWh"
        text.append(each)
    return f"Used: {'; '.join(text)}."


def _device(device: str) -> str:
    return "glideins that were never warm" if device == UNKNOWN else device


def _amount(number: float) -> str:
    return f"{number:,.2f}" if number >= 1 else f"{number:.3g}"


def glideins(report: Document, shown: int) -> str:
    """Return the caption of the figure that shows the timelines of glideins.

    Args:
        shown: number of glideins in the figure. The sweep may have had more.
    """
    every = report["glideins"]
    ends = {end: sum(each["end"] == end for each in every) for end in ("lost", "failed", "left")}
    fates = ", ".join(f"{count} {end}" for end, count in ends.items() if count)
    warm = sorted(each["warm_after_s"] for each in every if each["warm_after_s"] is not None)
    text = f"What each glidein did over time. {_number(len(every), 'glidein')}"
    text += f": {fates}, {len(every) - sum(ends.values())} present at the end" if fates else ", all present at the end"
    text += f"; warm after {warm[0]:.3g} to {warm[-1]:.3g} s." if warm else "; none became warm."
    if shown < len(every):
        text += f" {len(every) - shown} glideins are not shown: the figure prefers those that were lost or failed, then"
        text += " the slowest to become warm."
    return text


def accuracy(report: Document) -> str:
    ranked = sorted(report["accuracy"].items(), key=lambda item: -item[1]["accuracy"])
    (best, first), rest = ranked[0], ranked[1:]
    text = f"Accuracy by prompt with Wilson's 95 % confidence interval. The best is {best}: {first['accuracy']:.1%}"
    text += f" ({first['low']:.1%} to {first['high']:.1%} of {first['done']:,} records)"
    if not rest:
        return f"{text}."
    second, score = rest[0]
    apart = "the intervals do not overlap" if score["high"] < first["low"] else "the intervals overlap"
    return f"{text}. The next is {second} with {score['accuracy']:.1%}, and {apart}."


def speed(rates: dict[str, float]) -> str:
    fastest, *others = sorted(rates, key=lambda model: -rates[model])
    text = "How many records each model computed for each second in which an engine worked. More is better."
    if others:
        text += f" {fastest} is {rates[fastest] / rates[others[-1]]:,.3g} times as fast as {others[-1]}."
    return text


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
