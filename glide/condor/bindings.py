"""Import HTCondor's Python modules htcondor2 and classad2 when they are first used.

htcondor2 reads HTCondor's configuration when it is imported. The import is late, so that `glide.condor.connect` can
choose the pool first. If HTCondor has no configuration, the import of htcondor2 sets CONDOR_CONFIG to /dev/null for
this process and its children.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

QUERY_SECONDS = "20"  # time limit of a query to a daemon, in seconds; HTCondor's default is 60

reloads = 0  # how often `reload` was called in this process


def __getattr__(name: str) -> Any:
    if name not in ("htcondor2", "classad2"):
        raise AttributeError(name)
    # This adds the module to globals(), so that Python does not call __getattr__ for the module again.
    globals()[name] = module = importlib.import_module(name)
    if name == "htcondor2":
        module.param["QUERY_TIMEOUT"] = QUERY_SECONDS
    return module


def reload() -> None:
    """Read HTCondor's configuration again, because CONDOR_CONFIG may name a different pool now."""
    global reloads
    reloads += 1
    if module := globals().get("htcondor2"):
        module.reload_config(os.environ.get("CONDOR_CONFIG"))
        module.param["QUERY_TIMEOUT"] = QUERY_SECONDS


def version() -> str:
    """Return the version of HTCondor's Python bindings."""
    return str(__getattr__("htcondor2").version())
