"""Import htcondor2 and classad2 only when a program first uses them.

The import reads HTCondor's configuration. So a late import allows `glide.condor.connect` to choose the pool after the
rest of glide was imported. If HTCondor has no configuration, the import of htcondor2 sets CONDOR_CONFIG to /dev/null
for this process and its children.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

QUERY_SECONDS = "20"  # time limit for an answer of the collector, in seconds; HTCondor's default is 60


def __getattr__(name: str) -> Any:
    if name not in ("htcondor2", "classad2"):
        raise AttributeError(name)
    globals()[name] = module = importlib.import_module(name)  # Python calls this function only for missing names
    if name == "htcondor2":
        module.param["QUERY_TIMEOUT"] = QUERY_SECONDS
    return module


def reload() -> None:
    """Read HTCondor's configuration again, because CONDOR_CONFIG may name a different pool now."""
    if module := globals().get("htcondor2"):
        module.reload_config(os.environ.get("CONDOR_CONFIG"))
        module.param["QUERY_TIMEOUT"] = QUERY_SECONDS


def version() -> str:
    """Return the version of HTCondor that the bindings belong to."""
    return str(__getattr__("htcondor2").version())
