"""htcondor2 and classad2, imported on first use: they read HTCondor's configuration at that moment.

So `glide.condor.connect` can choose the pool in a process that has long imported everything else. (Imported
without any configuration they would set CONDOR_CONFIG to /dev/null for this process and its children.)
"""

from __future__ import annotations

import importlib
import os
from typing import Any

QUERY_SECONDS = "20"  # how long a collector may take to answer, as with a schedd; HTCondor's own default is 60


def __getattr__(name: str) -> Any:
    if name not in ("htcondor2", "classad2"):
        raise AttributeError(name)
    globals()[name] = module = importlib.import_module(name)  # from now on found without this function
    if name == "htcondor2":
        module.param["QUERY_TIMEOUT"] = QUERY_SECONDS
    return module


def reload() -> None:
    """Have the configuration read again, for another pool may be in force than when that was done."""
    if module := globals().get("htcondor2"):
        module.reload_config(os.environ.get("CONDOR_CONFIG"))
        module.param["QUERY_TIMEOUT"] = QUERY_SECONDS


def version() -> str:
    """HTCondor's, of which the bindings are."""
    return str(__getattr__("htcondor2").version())
