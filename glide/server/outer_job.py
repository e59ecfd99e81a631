"""How far a glidein came, in its own job's ad: that outlives it, so the factory can judge nodes and entries by it."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from glide.server.stream import Chirp
from glide.vocabulary import Job


async def tell_outer_job(state: str, failure: str) -> None:
    """Set GlideState and GlideFailure; of a glidein that was started by hand nobody needs to know."""
    with suppress(KeyError, OSError, ValueError, asyncio.TimeoutError):
        chirp = await Chirp.connect(os.environ["_CONDOR_CHIRP_CONFIG"])
        await chirp.set_attribute(Job.FAILURE, failure)
        await chirp.set_attribute(Job.STATE, state)
        chirp.close()
