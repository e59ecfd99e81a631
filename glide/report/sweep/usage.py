"""Compute what a sweep's glideins have used: device-hours, energy and costs."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from glide.report.sweep.history import SweepHistory
from glide.report.sweep.timeline import SPENT, lanes_by_device


def usage(history: SweepHistory) -> dict[str, dict[str, Any]]:
    """For each device, return the device-hours, the energy and the cost of the sweep's glideins.

    Returns:
        A dict for each device, with these keys:

        - `device_hours`: hours of GPUs, or of CPU cores without GPUs, for each kind of time (see `goodput`)
        - `kwh`: energy of the GPUs; None if no node reported it
        - `cost`: the device-hours at the price of the site file; None if no lane had a price
    """
    found: dict[str, dict[str, Any]] = {}
    joules: defaultdict[tuple[str, str, str], float] = defaultdict(float)  # by device, glidein and lane
    for device, lane, seconds_of in lanes_by_device(history):
        empty = {"device_hours": dict.fromkeys(SPENT, 0.0), "kwh": None, "cost": None}
        row = found.setdefault(device, empty)
        hours = {kind: seconds * lane.devices / 3600 for kind, seconds in seconds_of.items()}
        for kind in SPENT:
            row["device_hours"][kind] += hours[kind]
        if lane.price is not None:
            row["cost"] = (row["cost"] or 0.0) + lane.price * sum(hours.values())
        if lane.joules is not None:
            joules[device, lane.glidein, lane.name] += lane.joules
    by_glidein: dict[tuple[str, str], float] = {}  # the lanes of a glidein report the same energy
    for (device, glidein, _), each in joules.items():
        by_glidein[device, glidein] = max(each, by_glidein.get((device, glidein), 0.0))
    for (device, _), each in by_glidein.items():
        found[device]["kwh"] = (found[device]["kwh"] or 0.0) + each / 3.6e6
    return dict(sorted(found.items()))
