"""Measure glide on one machine with a GPU, which may have no network.

    .venv/bin/python workflows/gpu/kit.py pack FOLDER    with a network: collect what the other machine needs
    python FOLDER/kit.py run OUT                         on the other machine: install it, and measure

`pack` needs glide's environment and a checkout. `run` needs only Python's standard library, until it has installed the
rest. It writes gpu.json, gpu.md and gpu.png to OUT. README.md has the plan of the ten minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONDOR, CODE, WHEELS = "condor.tar.xz", "workflows.tar.gz", "wheels"
# What the machine with the GPU must have itself, because its builds depend on the GPU. vLLM is measured if it is there.
GIVEN = ("torch", "transformers")


def pack(folder: Path, python: str) -> None:
    """Collect the workflows, the wheels of glide and of its packages, and HTCondor in a folder.

    Args:
        python: version of Python on the machine with the GPU, such as 3.12.
    """
    from glide.condor import install

    root = HERE.parents[1]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "kit.py", folder)
    files = subprocess.run(
        ["git", "ls-files", "workflows"], cwd=root, check=True, capture_output=True, encoding="utf-8"
    ).stdout.splitlines()
    with tarfile.open(folder / CODE, "w:gz") as archive:
        for name in files:
            archive.add(root / name, name)
    condor = install.ensure()
    if not condor.is_private:  # its folder has other programs, too
        sys.exit(f"kit.py: found HTCondor in {condor.release_dir}; unset GLIDE_CONDOR, and leave it out of the PATH")
    with tarfile.open(folder / CONDOR, "w:xz") as archive:
        archive.add(condor.release_dir.parent, "condor")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder / WHEELS), str(root)], check=True)
    subprocess.run(
        [*pip, "download", "--quiet", "--dest", str(folder / WHEELS), "--python-version", python,
         "--only-binary=:all:", *_platforms(), *packages(root)],
        check=True,
    )  # fmt: skip


def packages(root: Path) -> list[str]:
    """Return the packages that glide requires."""
    import tomllib

    return list(tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"])


def _platforms() -> list[str]:
    return [f"--platform=manylinux_2_{minor}_x86_64" for minor in (34, 28, 27, 17)] + [
        "--platform=manylinux2014_x86_64"
    ]


def run(words: Sequence[str]) -> int:
    """Install the packed files in a temporary folder, measure, and return the exit code. A checkout is used as it is.

    Args:
        words: the arguments of measure.py.
    """
    if (HERE / "measure.py").exists():
        return subprocess.run([sys.executable, str(HERE / "measure.py"), *words]).returncode
    if missing := [name for name in GIVEN if importlib.util.find_spec(name) is None]:
        sys.exit(f"kit.py: this Python ({sys.executable}) lacks {' and '.join(missing)}; use one that has them")
    # HTCondor runs jobs under another account, which must be able to read this folder.
    with tempfile.TemporaryDirectory(prefix="glide-gpu-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for archive in (HERE / CODE, HERE / CONDOR):
            with tarfile.open(archive) as opened:
                opened.extractall(folder / "cache" / "glide" if archive.name == CONDOR else folder, filter="data")
        venv.create(folder / "venv", with_pip=True, symlinks=True)
        _use_given_packages(folder / "venv")
        python = folder / "venv" / "bin" / "python"
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(HERE / WHEELS), "glide"],
            check=True,
        )  # fmt: skip
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        measure = folder / "workflows" / "gpu" / "measure.py"
        return subprocess.run([python, str(measure), *words], env=environment).returncode


def _use_given_packages(folder: Path) -> None:
    """Let a virtual environment import the packages of this Python, too. Its own packages come first."""
    (site,) = folder.glob("lib/python*/site-packages")
    given = [path for path in sys.path if path.endswith("-packages")]
    (site / "given.pth").write_text("\n".join(given) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="collect what the machine with the GPU needs")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--python", default="3.12", help="version of Python on that machine (default: %(default)s)")
    running = commands.add_parser("run", help="measure; further options are those of measure.py")
    running.add_argument("out", type=Path)
    given, words = parser.parse_known_args()
    if given.command == "pack":
        pack(given.folder, given.python)
    else:
        sys.exit(run(["--out", str(given.out.absolute()), *words]))


if __name__ == "__main__":
    main()
