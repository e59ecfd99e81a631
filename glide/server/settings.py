"""What a model server is told of its node. Standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from glide.server.supply import SupplySettings
from glide.template import Parcel


@dataclass(frozen=True)
class Settings:
    """
    supply: where files come from, and go to.
    lanes: how many there are.
    memory: MB that all states together may take; None where nobody knows, and then there is one at a time.
    idle_seconds: without a job for so long, and nothing being loaded, the glidein ends itself; None for never.
    factory: the User who may bring code of others: their jobs have described it to the factory.
    users_code: whether templates may bring code of a user: with several owners it reaches what others have here.
    """

    supply: SupplySettings
    lanes: int = 1
    memory: float | None = None
    idle_seconds: float | None = None
    factory: str = ""
    users_code: bool = True

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        fields = json.loads(text)
        environment = fields["supply"]["environment"]
        fields["supply"]["environment"] = Parcel.from_fields(environment) if environment else None
        return cls(**{**fields, "supply": SupplySettings(**fields["supply"])})
