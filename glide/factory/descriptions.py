"""Read descriptions of templates from jobs in the queue. For each template, choose one description.

A template's digest does not cover the path of the files, the sizes of the files, or the time limit for loading. So a
user can submit a wrong description of a template that other users also want. Nodes never load wrong files, because they
check the sha256 of each file. But if the description has a wrong path or size, the template does not load at all.

If users describe a template differently, the choice protects the users whose description is right. The sizes in each
description are compared with the files on this host. These rules apply, in this order:

1. Descriptions with correct sizes come first. Next come descriptions whose files are not on this host. Descriptions
   with a wrong size come last.
2. Prefer the description that most users give.
3. Prefer the description from the oldest job.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from glide.condor import AccessPoint
from glide.condor.access_point import quoted
from glide.protocol import names
from glide.protocol.ads import InvocationAd
from glide.template import Template
from glide.vocabulary import Job

# For each template, the factory reads the jobs of at most this number of users. For each pair of a template and a user,
# the factory reads at most this number of jobs.
MAX_DESCRIPTIONS = 10


def find_templates(
    access_point: AccessPoint, jobs: Iterable[InvocationAd], owners: Collection[str]
) -> dict[str, Template]:
    """Return the templates that invocation jobs ask for and describe. The keys are the digests of the templates.

    Args:
        jobs: ads of invocation jobs.
        owners: values of the job attribute User. Only jobs with such a value may describe a template. If `owners` is
            empty, all jobs may describe a template.

    Raises:
        CondorError: the access point does not answer.
    """
    users: dict[str, dict[str, None]] = {}
    for job in sorted(jobs, key=lambda job: (job.cluster, job.proc)):
        if not owners or job.user in owners:
            users.setdefault(job.template, {})[job.user] = None
    found = {}
    for digest, askers in users.items():
        given = [_find_description(access_point, digest, user) for user in list(askers)[:MAX_DESCRIPTIONS]]
        if valid := [template for template in given if template is not None]:
            found[digest] = choose_description(valid)
    return found


def choose_description(templates: Sequence[Template]) -> Template:
    """Choose one of the descriptions of a template.

    Args:
        templates: one description from each user, in the order of the users' oldest jobs.
    """
    plain = list(map(_comparable, templates))
    if all(each == plain[0] for each in plain):
        return templates[0]
    return max(templates, key=lambda each: (_file_check(each), plain.count(_comparable(each))))


def _comparable(template: Template) -> Template:
    """Return a copy of a template without the fields that may differ between two right descriptions.

    The function is left out, because equal functions may have different pickles. The fields `key` and `seed` are left
    out, because the factory replaces their values.
    """
    return replace(template, function=None, key="", seed="")


def _file_check(template: Template) -> int:
    """Compare the file sizes in a description with the files on this host.

    Returns:
        1 if all sizes are right, -1 if a size is wrong, and 0 if the files are not on this host.
    """
    path = template.path or ""
    if not path.startswith("/") or not template.files:
        return 0
    try:
        sizes = [(Path(path, name).stat().st_size, size) for name, (_, size) in template.files.items()]
    except (OSError, ValueError):
        return 0
    return 1 if all(here == size for here, size in sizes) else -1


def _find_description(access_point: AccessPoint, digest: str, user: str) -> Template | None:
    """Return the template that a user's jobs describe; None if no job of the user has a valid description.

    Read at most MAX_DESCRIPTIONS jobs, because a description can be long.
    """
    constraint = f"{Job.TEMPLATE} == {quoted(digest)} && {Job.SPEC} =!= undefined && {Job.ENTRY} =?= undefined"
    constraint += f" && User == {quoted(user)}"
    for job in access_point.jobs(constraint, [Job.SPEC], limit=MAX_DESCRIPTIONS):
        with suppress(ValueError):
            template = Template.from_json(job.get(Job.SPEC, ""))
            is_valid = template.digest == digest and names.MODEL.fullmatch(template.model)
            # A user's code may run only for this user's jobs. Private files may be used only by their owner's jobs.
            if is_valid and template.serves(user):
                # The field `service` contains the URL of a service outside the pool. This service runs the model. Only
                # an entry may set this field. So delete the value that the job has set.
                return replace(template, service=None)
    return None
