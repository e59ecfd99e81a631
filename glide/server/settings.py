"""The settings of a model server. A glidein writes these settings to a file, which the model server reads.

This module needs only the standard library.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from glide.server.supply import SupplySettings
from glide.template import FileSet


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a model server.

    Attributes:
        supply: the settings for fetching the files of templates and for serving these files to peers.
        lanes: number of lanes.
        memory: memory that all loaded templates may use together, in MB. None means that the limit is unknown. The
            server then keeps only one template loaded.
        idle_seconds: number of idle seconds after which the server ends the glidein; None for never. The glidein is
            idle while it has no job and loads no template.
        factory: the factory's user, in the form of HTCondor's attribute User; empty if no factory is known. The
            factory's sticky jobs may bring the code of any user.
        users_code: whether templates may contain users' code. If the glidein serves several users, such code can reach
            the files of all these users on this node.
        programs: programs that serve models and are not a user's code, and the allowed flags of each; None for glide's
            own lists (glide.programs).
    """

    supply: SupplySettings
    lanes: int = 1
    memory: float | None = None
    idle_seconds: float | None = None
    factory: str = ""
    users_code: bool = True
    programs: dict[str, list[str]] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ServerSettings:
        fields = json.loads(text)
        environment = fields["supply"]["environment"]
        fields["supply"]["environment"] = FileSet.from_fields(environment) if environment else None
        return cls(**{**fields, "supply": SupplySettings(**fields["supply"])})
