"""Put the driver of a sweep into the queue, as a job that runs on the access point (submit_templates/sweep.sub)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from glide import resources
from glide.arguments import arguments, environment
from glide.condor import AccessPoint, EmbeddedPool, configured, connect, home
from glide.condor.access_point import quoted
from glide.errors import InputError
from glide.sweep.out import holder, internal_path
from glide.sweep.prepare import Sweep
from glide.vocabulary import Job, JobStatus

# Variables that the driver gets from the environment of the user. Others are left out, because everybody may read them
# in the job's ad.
VARIABLES = (
    "PATH", "HOME", "LANG", "LC_ALL", "CONDOR_CONFIG", "CONDOR_IDS", "GLIDE_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME",
    "XDG_CONFIG_HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR",
)  # fmt: skip


class DriverQueued(InputError):
    """The driver of the sweep is already in the queue."""


def submit(sweep: Sweep, site: Path | None) -> str:
    """Submit the driver of a sweep, and return the number of its job.

    Args:
        site: site file of the factory that the driver runs. If `site` is None, there are two cases:
            - On a configured pool, the driver runs no factory. Such a pool should already have its own factory.
            - On the embedded pool, the driver runs a factory for site_configs/local.yaml.

    Raises:
        DriverQueued: the driver is already in the queue.
        InputError: no pool runs, another process runs the sweep, or `out` cannot be written.
        CondorError: HTCondor does not answer, or refuses the job.
    """
    embedded = not configured()
    if embedded:
        if not EmbeddedPool(home()).is_up():
            raise InputError("no pool is configured, and the embedded pool is down; start it first: glide pool up")
        os.environ["CONDOR_CONFIG"] = str(EmbeddedPool(home()).config)
    connect()
    access_point = AccessPoint()
    source = str(sweep.source.absolute())
    if queued := queued_driver(access_point, source):
        raise DriverQueued(f"{sweep.source}: job {queued} already runs this sweep; stop it with: condor_rm {queued}")
    out = sweep.out_of_all
    if process := holder(out):
        raise InputError(f"{out} is in use by {process}; wait until this process ends, or name another `out`")
    logs = internal_path(out, "driver")
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename or logs}: {error.strerror}; `out` must be a folder you can write") from None
    command = ["-m", "glide", "sweep", "run", source, *(["--site", str(site.absolute())] if site else [])]
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if embedded:  # without CONDOR_CONFIG, the driver uses the embedded pool, and runs a factory for this pool
        variables = {**variables, "GLIDE_HOME": str(home())}
        variables.pop("CONDOR_CONFIG", None)
    macros = {
        "python": sys.executable, "driver": arguments(command), "variables": environment(variables),
        "log_folder": str(logs), "initialdir": os.getcwd(), "sweep": sweep.file.name, "source": source,
    }  # fmt: skip
    description = resources.find("submit_templates", "sweep.sub").read_text("utf-8")
    return f"{access_point.submit(description, macros)}.0"


def queued_driver(access_point: AccessPoint, source: str) -> str | None:
    """Return the number of the job that runs the driver of a sweep file; None if there is none in the queue."""
    jobs = access_point.jobs(f"{Job.SWEEP} =?= {quoted(source)}", ("ClusterId", "ProcId"))
    alive = [job for job in jobs if job["JobStatus"] not in (JobStatus.REMOVED, JobStatus.COMPLETED)]
    return f"{alive[0]['ClusterId']}.{alive[0]['ProcId']}" if alive else None
