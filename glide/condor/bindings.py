"""htcondor2 and classad2, imported on first use: they read HTCondor's configuration at that moment.

So `glide.condor.connect` can choose the pool in a process that has long imported everything else. (Imported
without any configuration they would set CONDOR_CONFIG to /dev/null for this process and its children.)
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("htcondor2", "classad2"):
        raise AttributeError(name)
    globals()[name] = module = importlib.import_module(name)  # from now on found without this function
    return module
