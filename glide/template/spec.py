"""A template describes sticky state completely, so that equal digests mean equal states.

Standard library only: nodes read templates too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from glide.system import open_regular
from glide.template import checks
from glide.vocabulary import State

# Seconds that a healthy node stays below by far: for each phase on the way to Warm; and when it is Warm, without a word
# of a call that it has been given and not begun.
BUDGETS = {
    State.BLANK: 300.0, State.FETCHING: 7200.0, State.IMPORTING: 900.0, State.LOADING: 3600.0, State.WARMING: 1800.0,
    State.WARM: 300.0,
}  # fmt: skip

# StickyInvoc, StickyI/O and create-destroy, as Phung and Thain call them.
Keep = Literal["state", "files", "nothing"]


@dataclass(frozen=True)
class Function:
    """A call that makes sticky state: what the python engine does at its start.

    Attributes:
        source: for people to read.
        pickle: cloudpickle's of (function, arguments, keyword arguments), in base64.
        digest: sha256 over what the call does: equal in every process, where pickles are not.
        python, cloudpickle: the versions that the pickle is for.
        owner: the User whose jobs alone may use it, for it is this user's code.
    """

    source: str
    pickle: str
    digest: str
    python: str
    cloudpickle: str
    owner: str


@dataclass(frozen=True)
class Parcel:
    """Files that travel to nodes.

    Attributes:
        path: where they are: a folder, or an address (glide.files.sources).
        files: sha256 and size in bytes of each, by name relative to the folder.
        key: opens the doors of peers that have them; from the factory, for its glideins alone.
        seed: where the factory gives them, for nodes that have no such folder.
    """

    path: str
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    key: str = ""
    seed: str = ""

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Parcel:
        """Read what dataclasses.asdict made, or anybody else.

        Raises:
            ValueError: it makes no sense.
        """
        checks.check(fields, checks.PARCEL, ("path", "files"), "the file set")
        return cls(**{**fields, "files": checks.files(fields["files"])})


@dataclass(frozen=True)
class Template:
    """What a model server materialises.

    Attributes:
        model: the name under which it is advertised (GlideModel).
        engine: which engine of glide.server.engines loads it.
        path: where its files are: a folder, or an address (glide.files.sources); None for engines without files.
        files: sha256 and size in bytes of each of the folder's files, by relative name.
        options: the engine's own options.
        function: what the python engine calls.
        service: options of the openai engine, where this node passes records on to a service that has the model.
        budgets: seconds that a phase (glide.vocabulary.State) may take, where BUDGETS do not suit.
        keep: what stays on the node from job to job, the state, its files alone, or nothing.
        key, seed: as a parcel's.
        environment: what the engine runs in, by default the node's own Python: an archive or an image that travels, or,
            without files, a folder or an image that the nodes have.
        user: the User who has chosen the environment.
    """

    model: str
    engine: str
    path: str | None = None
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    function: Function | None = None
    budgets: dict[str, float] = field(default_factory=dict)
    service: dict | None = None
    keep: Keep = "state"
    key: str = ""
    seed: str = ""
    environment: Parcel | None = None
    user: str = ""

    @classmethod
    def of_folder(cls, model: str, engine: str, folder: Path | None, options: dict) -> Template:
        """Describe a model folder; OSError when one of its files can't be read."""
        files = {} if folder is None else files_of(folder, folder)
        return cls(model, engine, str(folder) if folder else None, files, options)

    @property
    def owner(self) -> str:
        """Return the one User whose jobs may use the state; empty when it has no user's code in it."""
        return self.function.owner if self.function else self.user

    @property
    def has_code(self) -> bool:
        """Whether it brings code of a user: a function, or an environment with whatever is in it."""
        return self.function is not None or self.environment is not None

    def of(self, user: Callable[[], str]) -> Template:
        """Return it as the template of a user; one without an environment is anybody's, or its function's owner's."""
        return replace(self, user=user()) if self.environment and not self.function else self

    @property
    def digest(self) -> str:
        """sha256 over what makes the state: not over what may differ by node, such as the folder's place."""
        parts = {"engine": self.engine, "model": self.model, "options": self.options}
        parts["files"] = {name: digest for name, (digest, _) in self.files.items()}
        if self.keep != "state":
            parts["keep"] = self.keep
        if self.environment is not None:
            parts["environment"] = (
                sorted(digest for digest, _ in self.environment.files.values()) or self.environment.path
            )
        if self.user:
            parts["user"] = self.user
        if self.function is not None:
            parts["function"] = {**asdict(self.function), "source": "", "pickle": ""}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def parcel(self) -> Parcel:
        """Its files."""
        return Parcel(self.path or "", self.files, self.key, self.seed)

    @property
    def parcels(self) -> list[Parcel]:
        """All that travels for it."""
        return [parcel for parcel in (self.parcel, self.environment) if parcel and parcel.files]

    def budget(self, phase: str) -> float:
        """Seconds that a phase may take."""
        return self.budgets.get(phase, BUDGETS[phase])

    @property
    def megabytes(self) -> float:
        """MB of its files, which is the least that the state takes in memory."""
        return 0.0 if self.service else sum(size for _, size in self.files.values()) / 1e6

    def to_json(self) -> str:
        """One line that from_json reads back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Template:
        """Read what to_json wrote, or anybody else.

        Raises:
            ValueError: it makes no sense: a type, a range or a name is wrong, or a field is unknown.
        """
        fields = checks.loaded(text)
        checks.check(fields, checks.TEMPLATE, ("model", "engine", "files"), "the template")
        fields["files"] = checks.files(fields["files"])
        if fields.get("function") is not None:
            checks.check(fields["function"], checks.FUNCTION, tuple(checks.FUNCTION), "the function")
            fields["function"] = Function(**fields["function"])
        if fields.get("environment") is not None:
            fields["environment"] = Parcel.from_fields(fields["environment"])
        return cls(**fields)


def files_of(path: Path, root: Path) -> dict[str, tuple[str, int]]:
    """sha256 and size of a file, or of all files in a folder but hidden ones, by name relative to `root`."""
    files = {}
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if any(part.startswith(".") for part in each.relative_to(path).parts):
            continue
        status = each.stat()  # unlike is_file, it raises for a link to nothing
        if stat.S_ISREG(status.st_mode):
            name = str(each.relative_to(root))
            if not checks.is_file_name(name):
                raise OSError(errno.EILSEQ, "its name has control characters or is not UTF-8; rename it", str(each))
            files[name] = (_sha256(each), status.st_size)
    return files


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
