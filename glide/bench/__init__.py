"""The benchmarks of glide. Most benchmarks start their own pool.

The measured seconds depend on the machine. So most benchmarks also measure a baseline, for example HTCondor without
glide. The ratio between a result and its baseline depends less on the machine.
"""

from collections.abc import Callable
from typing import Any

from glide.bench.batch import batch
from glide.bench.batching import batching
from glide.bench.bootstrap import bootstrap
from glide.bench.factory import factory
from glide.bench.host_loss import host_loss
from glide.bench.lanes import lanes
from glide.bench.overhead import overhead
from glide.bench.records import records
from glide.bench.recovery import recovery
from glide.bench.serve import serve
from glide.bench.serving import serving
from glide.bench.sticky import sticky
from glide.bench.tail import tail

BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {
    "batch": batch,
    "batching": batching,
    "bootstrap": bootstrap,
    "factory": factory,
    "host-loss": host_loss,
    "lanes": lanes,
    "overhead": overhead,
    "records": records,
    "recovery": recovery,
    "serve": serve,
    "serving": serving,
    "sticky": sticky,
    "tail": tail,
}

__all__ = ["BENCHMARKS"]
