"""Create IDTOKENs with the pool's signing key, and find out when an IDTOKEN expires."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from glide.condor import install
from glide.errors import CondorError
from glide.system import publish

TOOL_SECONDS = 30.0


def seconds_left(path: Path, now: float) -> float | None:
    """Return the seconds until the token in a file expires. None: the file has no token, or it never expires."""
    try:
        payload = path.read_text("utf-8").split(".")[1]
        expires = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]
    except (OSError, IndexError, ValueError, KeyError):
        return None
    return float(expires) - now


def mint(
    path: Path,
    identity: str,
    authorizations: Sequence[str] = (),
    lifetime: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Create a token and write it to a file that only this account can read.

    Args:
        path: path of the file.
        identity: the bearer's identity, as user@trust-domain.
        authorizations: the authorization levels that the token grants (ADVERTISE_STARTD, …); empty: all levels.
        lifetime: seconds until the token expires. None: the token never expires.
        environment: environment variables for condor_token_create, including the pool's CONDOR_CONFIG.

    Raises:
        CondorError: HTCondor is not installed, or the pool's signing key does not exist or cannot be read.
    """
    installation = install.find()
    if installation is None:
        raise CondorError("HTCondor is not installed; `glide pool up` installs it")
    command = [installation.program("condor_token_create"), "-identity", identity]
    command += [word for each in authorizations for word in ("-authz", each)]
    command += ["-lifetime", str(lifetime)] if lifetime is not None else []
    try:
        done = subprocess.run(
            command, env=dict(environment), capture_output=True, encoding="utf-8", errors="replace",
            stdin=subprocess.DEVNULL, timeout=TOOL_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CondorError(
            f"no token for {identity}: condor_token_create has not ended within {TOOL_SECONDS:.0f} s"
        ) from None
    if done.returncode != 0:
        raise CondorError(f"no token for {identity}: {done.stderr.strip()}")
    publish(path, done.stdout)
