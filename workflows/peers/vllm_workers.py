"""What all systems with vLLM as their engine share: its options, and how its processes say what they do.

A plugin of vLLM (vllm_counter.py) says when a model is loaded, and how many prompts its engine has begun.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infer import GENERATE, HERE, WATCH_VARIABLE

MAX_MODEL_LEN = 512  # maximum number of tokens of a prompt with its text
OPTIONS: dict[str, Any] = {"dtype": "float32", "enforce-eager": True, "generation-config": "vllm"}
SAMPLING = {"temperature": 0, "max_tokens": GENERATE["max_new_tokens"]}  # in vLLM's API
VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}


def arguments() -> list[str]:
    """Return the options of vLLM's commands."""
    options = {**OPTIONS, "max-model-len": MAX_MODEL_LEN}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]


def write_plugin(folder: Path) -> None:
    """Write the description of the plugin into a folder. vLLM finds it if the folder and HERE are in PYTHONPATH."""
    plugin = folder / "peers-1.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: peers\nVersion: 1\n", "utf-8")
    (plugin / "entry_points.txt").write_text("[vllm.stat_logger_plugins]\npeers = vllm_counter:Counter\n", "utf-8")


@contextmanager
def counted(vllm: str) -> Iterator[Callable[[], float]]:
    """Let each vLLM that starts in this block load the plugin. Yield a function that returns when the first was ready.

    Args:
        vllm: folder of the environment with vLLM, whose programs are then on the PATH.
    """
    with tempfile.TemporaryDirectory() as name:
        write_plugin(Path(name))
        os.environ |= VARIABLES | {"VLLM_CACHE_ROOT": str(Path(name) / "vllm")}
        os.environ["PYTHONPATH"] = os.pathsep.join((HERE, name))
        os.environ["PATH"] = os.pathsep.join((str(Path(vllm) / "bin"), os.environ["PATH"]))
        watched = Path(os.environ.setdefault(WATCH_VARIABLE, name))
        yield lambda: min(float(path.read_text("utf-8")) for path in watched.glob("*.ready"))
