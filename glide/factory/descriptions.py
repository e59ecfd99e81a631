"""Find the descriptions of templates in the queue, and choose among those that several users give of one template.

Where its files lie, their sizes, and the time that it may take to load are not in a template's digest. So a user can
describe a template wrongly that others ask for too. Nothing wrong is ever loaded, as nodes check each file's sha256;
but with a wrong path or size nothing loads at all. The choice keeps that from those who describe it rightly: one
description a user counts, files that are here confirm or contradict it, then most users win, then the oldest job.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from glide.condor import AccessPoint, names
from glide.condor.access_point import quoted
from glide.template import Template
from glide.vocabulary import Job

DESCRIPTIONS = 10  # jobs of a user, and users, that are looked at for one template


def described(
    access_point: AccessPoint, jobs: Iterable[Mapping[str, Any]], owners: Collection[str]
) -> dict[str, Template]:
    """The templates that invocation jobs ask for and describe, by digest.

    Args:
        owners: whose jobs may describe a template; none is anybody.

    Raises:
        CondorError: the access point does not answer.
    """
    users: dict[str, dict[str, None]] = {}
    for job in sorted(jobs, key=lambda job: (job["ClusterId"], job["ProcId"])):
        user = job.get("User", "")
        if not owners or user in owners:
            users.setdefault(job[Job.TEMPLATE], {})[user] = None
    found = {}
    for digest, each in users.items():
        given = [_of(access_point, digest, user) for user in list(each)[:DESCRIPTIONS]]
        if sound := [template for template in given if template is not None]:
            found[digest] = chosen(sound)
    return found


def chosen(templates: Sequence[Template]) -> Template:
    """The description to go by, of one that each user gave, that of the oldest job first."""
    plain = list(map(_plain, templates))
    if all(each == plain[0] for each in plain):
        return templates[0]
    return max(templates, key=lambda each: (_confirmed(each), plain.count(_plain(each))))


def _plain(template: Template) -> Template:
    """Without what users write each in their own way, and what the factory sets."""
    return replace(template, function=None, key="", seed="")


def _confirmed(template: Template) -> int:
    """1 where its files are on this host with these sizes, -1 where they are here and have other sizes, else 0."""
    path = template.path or ""
    if not path.startswith("/") or not template.files:
        return 0
    try:
        sizes = [(Path(path, name).stat().st_size, size) for name, (_, size) in template.files.items()]
    except (OSError, ValueError):
        return 0
    return 1 if all(here == size for here, size in sizes) else -1


def _of(access_point: AccessPoint, digest: str, user: str) -> Template | None:
    """The template as a user's jobs describe it. Not from all of them: a description may be long."""
    constraint = f"{Job.TEMPLATE} == {quoted(digest)} && {Job.SPEC} =!= undefined && {Job.ENTRY} =?= undefined"
    constraint += f" && User == {quoted(user)}"
    for job in access_point.jobs(constraint, [Job.SPEC], limit=DESCRIPTIONS):
        with suppress(ValueError):
            template = Template.from_json(job.get(Job.SPEC, ""))
            sound = template.digest == digest and names.MODEL.fullmatch(template.model)
            own = not template.has_code or template.owner == user  # code runs for whom it is from alone
            if sound and own:
                return replace(template, service=None)  # where records go is the entry's to say
    return None
