"""Measure how long it takes until the records of a lost host run again, if the host sends neither FIN nor RST.

The host is a network namespace, so the benchmark needs root. To cut off the host, the benchmark gives both ends of the
host's virtual cable a wrong neighbour address.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from glide.bench.recovery import OPTIONS, wait_for_restart
from glide.bench.rig import Rig, rig
from glide.condor import Collector, EventLog
from glide.condor.pool import as_unprivileged
from glide.errors import InputError
from glide.system import files_below
from glide.vocabulary import POOL_VARIABLE, Machine, State

HERE, THERE = "10.98.76.1", "10.98.76.2"
JOBS = LANES = 3
UNUSED_ADDRESS = "02:00:00:00:00:99"  # a hardware address that no interface has


class Host:
    """A network namespace. A virtual cable (veth) connects it to the namespace of this process."""

    def __init__(self) -> None:
        self.name = f"glide-{secrets.token_hex(3)}"
        self.outer, self.inner = f"{self.name}-o", f"{self.name}-i"  # names of the two ends of the cable

    def inside(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def plug(self) -> None:
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self.outer, "type", "veth", "peer", "name", self.inner, "netns", self.name)
        _run("ip", "addr", "add", f"{HERE}/30", "dev", self.outer)
        _run("ip", "link", "set", self.outer, "up")
        _run(*self.inside("ip", "addr", "add", f"{THERE}/30", "dev", self.inner))
        for device in ("lo", self.inner):
            _run(*self.inside("ip", "link", "set", device, "up"))

    def cut(self) -> None:
        """Drop all packets in both directions from now on. Neither side gets an error."""
        neighbour = ("lladdr", UNUSED_ADDRESS, "nud", "permanent", "dev")
        _run("ip", "neigh", "replace", THERE, *neighbour, self.outer)
        _run(*self.inside("ip", "neigh", "replace", HERE, *neighbour, self.inner))

    def heal(self) -> None:
        _run("ip", "neigh", "del", THERE, "dev", self.outer)
        _run(*self.inside("ip", "neigh", "del", HERE, "dev", self.inner))

    def unplug(self) -> None:
        subprocess.run(["ip", "link", "del", self.outer], capture_output=True)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)


def host_loss(repeat: int) -> dict[str, Any]:
    """Measure the seconds from the cut of a host until the host's records start elsewhere, `repeat` times.

    Either TCP's keepalive or the driver notices the loss first. The keepalive needs 10 s plus the access point's
    net.ipv4.tcp_keepalive_intvl (by default 75 s). The driver notices the loss when the lanes of the host have sent no
    update for some time, while the lanes of other hosts still send updates.
    """
    if os.getuid() != 0 or shutil.which("ip") is None:
        raise InputError("cannot make network namespaces: root and `ip` are needed; run as root and install iproute2")
    host = Host()
    losses = []
    try:
        host.plug()
        knobs = {"NETWORK_INTERFACE": HERE, "NO_DNS": "True"}
        with rig(cores=1, address=HERE, max_glideins=1, lanes=LANES, knobs=knobs) as bench:
            bench.sweep(64, OPTIONS, glideins=1)
            for _ in range(repeat):
                losses.append(_lose_a_host(bench, host))
                host.heal()
    finally:
        host.unplug()
    seconds = [loss["seconds"] for loss in losses]
    return {
        "median_s": round(median(seconds), 3),
        "worst_s": round(max(seconds), 3),
        "recomputed": sum(loss["recomputed"] for loss in losses),
        "losses": losses,
    }


def _lose_a_host(bench: Rig, host: Host) -> dict[str, Any]:
    """Cut off the host while it runs all jobs of a sweep.

    The factory has also started a glidein on this machine for these jobs. The lanes of this second glidein are free, so
    the lost records can run there.
    """
    bench.drain()
    seconds: list[float] = []
    finished = threading.Event()
    with _glidein(bench, host):
        killer = threading.Thread(target=_cut, args=(host, seconds, finished), daemon=True)

        def watch(progress: Any) -> None:
            if progress.running == JOBS and killer.ident is None:
                killer.start()

        summary = bench.sweep(JOBS * 1000, OPTIONS, watch, glideins=1, pack=1000)
        finished.set()
    return {
        "seconds": round(seconds[0], 3), "recomputed": summary["recomputed"],
        "lost_in_flight": summary["lost_in_flight"],
    }  # fmt: skip


def _cut(host: Host, seconds: list[float], finished: threading.Event) -> None:
    time.sleep(8.0)  # wait until the lanes of the host compute, and the lanes of this machine are warm
    events = EventLog()
    cut = time.monotonic()
    host.cut()
    if (restarted := wait_for_restart(events, finished)) is not None:
        seconds.append(restarted - cut)
        print(f"bench: the records of the lost host run again after {seconds[0]:.3f} s", file=sys.stderr)


@contextmanager
def _glidein(bench: Rig, host: Host) -> Iterator[None]:
    """Run a glidein in the network namespace `host` during a `with` block.

    The factory has already written files from which a glidein starts. The glidein in the namespace starts from a copy
    of these files.
    """
    found = files_below(bench.pool.home, "glidein.json")
    (prepared,) = {each.parent for each in found if "execute" not in each.parts}
    folder = bench.folder / f"elsewhere-{secrets.token_hex(3)}"
    shutil.copytree(prepared, folder)
    settings = json.loads((folder / "glidein.json").read_text("utf-8"))
    settings |= {"entry": "elsewhere", "knobs": settings["knobs"] | {"NETWORK_INTERFACE": THERE}}
    (folder / "glidein.json").write_text(json.dumps(settings), "utf-8")
    environment = {**os.environ, POOL_VARIABLE: str(bench.pool.home), "GLIDE_PYTHON": sys.executable}
    environment.pop("CONDOR_IDS", None)
    with (folder / "output").open("wb") as output:
        glidein = subprocess.Popen(
            host.inside(*as_unprivileged(), "sh", "start.sh"), cwd=folder, env=environment, stdout=output, stderr=output
        )
    try:
        collector, warm = Collector(), f'{Machine.ENTRY} == "elsewhere" && {Machine.STATE} == "{State.WARM}"'
        while len(collector.lanes(["Name"], warm)) < LANES:
            time.sleep(0.2)
        yield
    finally:
        glidein.kill()
        glidein.wait()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
