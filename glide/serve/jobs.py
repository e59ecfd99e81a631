"""The jobs of `glide serve`: its standing jobs, and the drivers of its batches."""

from __future__ import annotations

from collections.abc import Collection

from glide.condor.access_point import quoted
from glide.live.jobs import StandingJobs
from glide.vocabulary import Job, JobStatus


class ServeJobs(StandingJobs):
    """The jobs of one `glide serve`. Its live calls come before batches."""

    precede = True

    def drivers(self, sources: Collection[str]) -> dict[str, tuple[str, str]]:
        """Return the drivers of sweeps in the queue: the job's number and why it is held, by path of the sweep file.

        Args:
            sources: paths of sweep files. Sweeps without a driver in the queue are left out.
        """
        wanted = f"member({Job.SWEEP}, {{{', '.join(map(quoted, sources))}}})"
        found: dict[str, tuple[str, str]] = {}
        for job in self.access_point.jobs(wanted, ("ClusterId", "ProcId", "HoldReason", Job.SWEEP)):
            if job["JobStatus"] not in (JobStatus.REMOVED, JobStatus.COMPLETED):
                reason = str(job.get("HoldReason", "held")) if job["JobStatus"] == JobStatus.HELD else ""
                found[str(job[Job.SWEEP])] = f"{job['ClusterId']}.{job['ProcId']}", reason
        return found
