"""How far a glidein came, in its own job's ad: that outlives it, so the factory can judge nodes and entries by it."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from glide.server.status import Status
from glide.server.stream import Chirp
from glide.vocabulary import Job


async def tell_outer_job(status: Status) -> None:
    """Report what the factory reads there; a glidein that was started by hand has no job to report to."""
    told: dict[str, str | int] = {
        Job.FAILURE: status.failure, Job.SERVED: status.served, Job.ERRORS: status.errors,
        Job.STATE_SINCE: int(status.since), Job.STATE: status.state,
    }  # fmt: skip
    with suppress(KeyError, OSError, ValueError, asyncio.TimeoutError):
        chirp = await Chirp.connect(os.environ["_CONDOR_CHIRP_CONFIG"])
        for name, value in told.items():
            await chirp.report(name, value)
        chirp.close()
