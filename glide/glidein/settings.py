"""The settings of a glidein. The factory sends the settings in one JSON file with the glidein.

This module needs only the standard library.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from glide.template import FileSet, Template

# Each glidein's lifetime is randomly longer or shorter by up to this share. So glideins that start at the same time do
# not all end at the same time.
SPREAD = 0.1


@dataclass(frozen=True)
class GlideinSettings:
    """The settings of a glidein.

    `condor` and `bundle` determine where a node finds HTCondor:

    - If only `condor` is set, the node uses the release folder.
    - If only `bundle` is set, the node uses the archive.
    - If both are set, the node tries the release folder, then the node's PATH, then the archive.
    - If both are None, the node uses its PATH.

    Attributes:
        collector: address of the overlay pool's collector.
        trust_domain: trust domain of the overlay pool, in which the glidein's token is valid.
        owners: users in the form Owner@UidDomain. The lanes serve the invocation jobs of these users.
        template: the template to load at first; None for a blank glidein.
        factory: the factory's user, in the form of HTCondor's attribute User. All lanes accept the factory's sticky
            jobs with any template.
        lanes: number of lanes. Lanes are static slots that share the model server.
        memory: memory that all loaded templates may use together, in MB. None means that the limit is unknown. The
            model server then keeps only one template loaded.
        condor: path of HTCondor's release folder on the nodes; None if nodes need no such folder.
        bundle: archive of HTCondor, which nodes fetch; None if nodes fetch no archive.
        environment: environment for engines whose templates name no environment. None means that such engines run in
            the node's own Python.
        idle_seconds: number of seconds without a job after which the glidein ends itself.
        lifetime: number of seconds from the start of the glidein until its lanes accept no further job.
        cache: folder on the node in which files stay for later glideins; None for the account's default folder.
        cache_gigabytes: maximum size of the cache in GB; None if the cache may use most of its disk.
        upload_megabytes: maximum number of MB per second that other nodes may take from this glidein; None for no
            limit.
        compiled_key: key with which the entry's glideins exchange compiled code; empty if they do not.
        users_code: True to allow templates with users' code although there are several owners. If there is only one
            owner, such templates are always allowed.
        devices: number of GPUs, or of CPU cores if the glidein has no GPU.
        price: price of one device for one hour; None if it is not known.
        programs: programs that serve models and are not a user's code, and the allowed flags of each; None for glide's
            own lists (glide.programs).
        knobs: names and values of further HTCondor settings. They override glide's own settings.
    """

    entry: str
    site: str
    collector: str
    trust_domain: str
    owners: tuple[str, ...]
    template: Template | None
    factory: str = ""
    lanes: int = 2
    memory: int | None = None
    condor: str | None = None
    bundle: FileSet | None = None
    environment: FileSet | None = None
    idle_seconds: int = 600
    lifetime: int = 86400
    cache: str | None = None
    cache_gigabytes: float | None = None
    upload_megabytes: float | None = None
    compiled_key: str = ""
    users_code: bool = False
    programs: dict[str, list[str]] | None = None
    devices: int = 1
    price: float | None = None
    knobs: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> GlideinSettings:
        fields = json.loads(text)
        if fields["template"]:
            fields["template"] = Template.from_json(json.dumps(fields["template"]))
        for name in ("bundle", "environment"):
            fields[name] = FileSet.from_fields(fields[name]) if fields[name] else None
        return cls(**{**fields, "owners": tuple(fields["owners"])})
