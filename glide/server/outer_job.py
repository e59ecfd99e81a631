"""Report a glidein's state in the ad of its outer job.

The ad of the outer job still exists after the glidein has ended. So the factory can judge nodes and entries by this ad.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from glide.job_ad import read_ad
from glide.server.chirp import Chirp
from glide.server.status import Status
from glide.vocabulary import Job


async def report_to_outer_job(status: Status) -> None:
    """Write a status to the outer job's ad, as attributes that the factory reads.

    If a person started the glidein, there is no outer job, and this function does nothing.
    """
    with suppress(KeyError, OSError, ValueError, asyncio.TimeoutError):
        chirp = await Chirp.connect(os.environ["_CONDOR_CHIRP_CONFIG"])
        attributes: dict[str, str | int] = {
            # The ad keeps the report of an earlier start. With this number, the factory recognizes it.
            Job.REPORTED_START: int(read_ad(os.environ.get("_CONDOR_JOB_AD")).get("NumShadowStarts", "1")),
            Job.FAILURE: status.failure, Job.SERVED: status.served, Job.ERRORS: status.errors,
            Job.STATE_SINCE: int(status.since), Job.STATE: status.state,
        }  # fmt: skip
        for name, value in attributes.items():
            await chirp.set_attribute(name, value)
        chirp.close()
