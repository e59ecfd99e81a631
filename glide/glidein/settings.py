"""What the factory tells a glidein, in one JSON file beside its token. Standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from glide.template import Parcel, Template

SPREAD = 0.1  # of the lifetime: glideins that came together are not to go together


@dataclass(frozen=True)
class Settings:
    """
    collector: address of the overlay pool's collector.
    trust_domain: the overlay pool's, for its token.
    owners: whose invocation jobs the lanes serve, as Owner@UidDomain.
    factory: the User that the factory is, whose sticky jobs any lane takes, and whatever they bring.
    lanes: static slots that share the model server.
    memory: MB that the states on it may take together; None where nobody knows, and then it holds one at a time.
    condor: HTCondor's release folder on the node, if it has one there.
    bundle: an archive with such a folder, for nodes that have neither that nor HTCondor on their PATH; or for all
        nodes where `condor` is None. Without both it is the one on the PATH.
    environment: what engines run in where a template names nothing else; None for the node's own Python.
    template: what it holds at first; a blank one nothing.
    idle_seconds: without a claim for so long, the glidein ends itself.
    lifetime: after so many seconds it takes no further job.
    cache: the folder on the node where files stay for the glideins to come; by default one of this account.
    cache_gigabytes: that it may take; None for most of its disk.
    upload_megabytes: a second that other nodes may take from it; None for no limit.
    users_code: whether several owners may bring code of their own; one alone always may.
    knobs: further HTCondor configuration of this entry.
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
    bundle: Parcel | None = None
    environment: Parcel | None = None
    idle_seconds: int = 600
    lifetime: int = 86400
    cache: str | None = None
    cache_gigabytes: float | None = None
    upload_megabytes: float | None = None
    users_code: bool = False
    knobs: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        fields = json.loads(text)
        if fields["template"]:
            fields["template"] = Template.from_json(json.dumps(fields["template"]))
        for name in ("bundle", "environment"):
            fields[name] = Parcel.from_fields(fields[name]) if fields[name] else None
        return cls(**{**fields, "owners": tuple(fields["owners"])})
