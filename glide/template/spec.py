"""Templates. A template describes sticky state completely, so that templates with equal digests make equal states.

This module uses only the standard library, because nodes use this module, too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from glide.programs import unlisted
from glide.system import open_regular
from glide.template import checks
from glide.template.needs import Needs
from glide.vocabulary import State

# The time limit of each phase of a model server, in seconds. A healthy node needs far less time.
# - Before Warm: If a phase takes longer than its limit, the template fails on this node.
# - Warm: This phase may last forever. The limit applies to an engine that has records to serve, but runs no call. Such
#   an engine must send a message within the limit. Otherwise, the model server kills the engine.
BUDGETS = {
    State.BLANK: 300.0, State.FETCHING: 7200.0, State.IMPORTING: 900.0, State.LOADING: 3600.0, State.WARMING: 1800.0,
    State.WARM: 300.0,
}  # fmt: skip

# Values of a template's `keep`. Phung and Thain's paper on StickyInvoc calls them StickyInvoc, StickyI/O and
# create-destroy.
Keep = Literal["state", "files", "nothing"]


@dataclass(frozen=True)
class Function:
    """A call that makes sticky state. The python engine runs this call when the engine starts.

    Attributes:
        source: the function's source code, for people.
        pickle: the tuple (function, arguments, keyword arguments), pickled by cloudpickle, in base64.
        digest: sha256 over the call's code and values. Unlike a pickle, this digest is the same in every process.
        python, cloudpickle: the versions of Python and cloudpickle that made the pickle.
        owner: the User who wrote the code. Only this user's jobs may use the state.
    """

    source: str
    pickle: str
    digest: str
    python: str
    cloudpickle: str
    owner: str


@dataclass(frozen=True)
class FileSet:
    """Files that nodes fetch.

    Attributes:
        path: folder or address (glide.files.sources) of the files.
        files: sha256 and size in bytes of each file. The keys are the file names relative to the folder.
        key: secret with which a node may fetch these files from peers. The factory makes the key. Empty: the files are
            not fetched from peers.
        seed: address of the factory's seed, from which nodes without this folder fetch the files. Empty: no seed.
        owner: the User who alone may use the files; empty if everybody may.
    """

    path: str
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    key: str = ""
    seed: str = ""
    owner: str = ""

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON. An empty `owner` is left out, because an older glide knows no owner."""
        fields = asdict(self)
        return fields if self.owner else {name: value for name, value in fields.items() if name != "owner"}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> FileSet:
        """Make a file set from the result of `to_fields`. Check the fields, because any user may have set them.

        Raises:
            ValueError: a field is missing, unknown or invalid.
        """
        checks.check(fields, checks.FILE_SET, ("path", "files"), "the file set")
        return cls(**{**fields, "files": checks.files(fields["files"])})


@dataclass(frozen=True)
class Template:
    """The description of the state that a model server loads.

    Attributes:
        model: name of the model in ads (GlideModel).
        engine: name of the engine in glide.server.engines that loads the model.
        path: folder or address (glide.files.sources) of the model's files; None for engines without files.
        files: sha256 and size in bytes of each file. The keys are the file names relative to the folder.
        options: options of the engine.
        function: the call that the python engine runs; None for other engines.
        service: options of the openai engine, if a service outside the pool has the model; otherwise None.
        budgets: time limits in seconds. The keys are phases (glide.vocabulary.State). These limits override BUDGETS.
        keep: what stays on the node between jobs: the whole state, only the files, or nothing.
        key, seed: as in FileSet, for the template's files.
        environment: file set of the environment in which the engine runs. There are three cases:
            - The file set contains one file, which is an archive or an image. Nodes fetch this file.
            - The file set contains no file. Nodes use the folder or image that the file set's `path` names.
            - None: the engine runs in the entry's environment. Without such an environment, the engine runs in the
              node's own Python.
        user: the User who chose the environment or the command, or who alone may use the files. `user` is empty in two
            cases:
            - The template has no code and is not private.
            - The template has a function. Then `function.owner` names the user.
        private: whether only the jobs of `user` may use the files.
        needs: the resources that the template needs on a node.
        adapters: file sets of LoRA adapters, by name. A record may name the adapter with which it is computed.
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
    environment: FileSet | None = None
    user: str = ""
    private: bool = False
    needs: Needs = field(default_factory=Needs)
    adapters: dict[str, FileSet] = field(default_factory=dict)

    @classmethod
    def of_folder(cls, model: str, engine: str, folder: Path | None, options: dict) -> Template:
        """Return the template of a model in a folder. Raises OSError if a file cannot be read."""
        files = {} if folder is None else files_of(folder, folder)
        return cls(model, engine, str(folder) if folder else None, files, options)

    @property
    def owner(self) -> str:
        """Return the User whose code or private files the state contains. Only this user's jobs may use the state.

        If the state contains neither, return an empty text.
        """
        return self.function.owner if self.function else self.user

    def serves(self, user: str) -> bool:
        """Return whether jobs of a User may use the state."""
        return self.owner == user or not (self.owner or self.has_code or self.private)

    @property
    def has_code(self) -> bool:
        """Return whether the template may contain a user's code: a function, an environment or a command."""
        return self.code() != ""

    def code(self, programs: Mapping[str, Sequence[str]] | None = None) -> str:
        """Return the name of the part of the template that may be a user's code, such as `a function`.

        If no part may be a user's code, return an empty text.

        Args:
            programs: programs that are allowed, and the flags that are allowed for each; None for glide's own lists.
        """
        if self.function is not None:
            return "a function"
        if self.environment is not None:
            return "an environment"
        return unlisted(self.options, programs) if self.engine == "server" else ""

    def for_user(self, user: Callable[[], str]) -> Template:
        """Return a copy of the template with the user's name in the field `user`.

        In two cases, return the template itself, and do not ask for the name:

        - The template has no code and is not private.
        - The template has a function. Then `function.owner` already names the user.

        Args:
            user: a function that returns the user's name. This function is called only if a copy is made.
        """
        return replace(self, user=user()) if (self.has_code or self.private) and not self.function else self

    @property
    def digest(self) -> str:
        """Return the sha256 over all fields that determine the state.

        Fields that do not change the state, such as `path`, are left out.
        """
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
        if self.private:
            parts["private"] = "true"
        if self.needs != Needs():
            parts["needs"] = asdict(self.needs)
        if self.adapters:
            parts["adapters"] = {
                name: {file: digest for file, (digest, _) in each.files.items()} for name, each in self.adapters.items()
            }
        if self.function is not None:
            parts["function"] = {**asdict(self.function), "source": "", "pickle": ""}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def with_only(self, adapter: str) -> Template:
        """Return a copy with only one of the adapters, or with none if `adapter` is empty.

        The digest of the copy depends on all that determines the results of records with this adapter.
        """
        return replace(self, adapters={adapter: self.adapters[adapter]} if adapter else {})

    @property
    def file_set(self) -> FileSet:
        """Return the template's files as a file set. The files of the environment are not included."""
        return FileSet(self.path or "", self.files, self.key, self.seed, self.owner if self.private else "")

    @property
    def adapter_sets(self) -> dict[str, FileSet]:
        """Return the adapters. If the template is private, they are private, too."""
        return {name: replace(each, owner=self.file_set.owner) for name, each in self.adapters.items()}

    @property
    def file_sets(self) -> list[FileSet]:
        """Return the file sets that a node must fetch: those of the model, the environment and the adapters, if any."""
        sets = (self.file_set, self.environment, *self.adapter_sets.values())
        return [file_set for file_set in sets if file_set and file_set.files]

    def budget(self, phase: str) -> float:
        """Return the time limit of a phase, in seconds."""
        return self.budgets.get(phase, BUDGETS[phase])

    @property
    def megabytes(self) -> float:
        """Return the size of the files in MB. The state needs at least this amount of memory.

        If a service outside the pool has the model, return 0.
        """
        sizes = (
            size for each in (self.files, *(each.files for each in self.adapters.values())) for _, size in each.values()
        )
        return 0.0 if self.service else sum(sizes) / 1e6

    def to_json(self) -> str:
        """Return the template as one line of JSON, which from_json can read.

        `private` is left out if it is false, and empty `needs` and `adapters` are left out, because an older glide does
        not know these fields.
        """
        fields = asdict(self)
        if not self.private:
            del fields["private"]
        if self.needs == Needs():
            del fields["needs"]
        if self.environment is not None:
            fields["environment"] = self.environment.to_fields()
        fields["adapters"] = {name: each.to_fields() for name, each in self.adapters.items()}
        if not self.adapters:
            del fields["adapters"]
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Template:
        """Make a template from the JSON that to_json writes. Check the JSON, because any user may have written it.

        Raises:
            ValueError: a type, a range or a name is wrong, or a field is unknown or missing.
        """
        fields = checks.parse(text)
        checks.check(fields, checks.TEMPLATE, ("model", "engine", "files"), "the template")
        fields["files"] = checks.files(fields["files"])
        if fields.get("function") is not None:
            checks.check(fields["function"], checks.FUNCTION, tuple(checks.FUNCTION), "the function")
            fields["function"] = Function(**fields["function"])
        if fields.get("environment") is not None:
            fields["environment"] = FileSet.from_fields(fields["environment"])
        fields["needs"] = Needs.from_fields(fields.get("needs", {}))
        fields["adapters"] = {
            checks.adapter_name(name): FileSet.from_fields(each) for name, each in fields.get("adapters", {}).items()
        }
        if not all(each.files for each in fields["adapters"].values()):  # otherwise, the engine would get any folder
            raise ValueError("an adapter has no files")
        for each in (fields.get("environment"), *fields["adapters"].values()):
            if each is not None and each.owner:  # otherwise, a user could name the private files of another user
                raise ValueError("environments and adapters have no owner of their own")
        return cls(**fields)


def files_of(path: Path, root: Path) -> dict[str, tuple[str, int]]:
    """Return a dict from each file's name to its sha256 and its size in bytes. The names are relative to `root`.

    If `path` is a file, the dict has only this file. If `path` is a folder, the dict has all its files except hidden
    files.

    Raises:
        OSError: a file cannot be read, a link leads to nothing, or a name is not valid.
    """
    files = {}
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if any(part.startswith(".") for part in each.relative_to(path).parts):
            continue
        status = each.stat()  # stat, unlike is_file, raises an error for a link whose target is missing
        if stat.S_ISREG(status.st_mode):
            name = str(each.relative_to(root))
            if not checks.is_file_name(name):
                raise OSError(
                    errno.EILSEQ, "the name has control characters or is not UTF-8; rename the file", str(each)
                )
            files[name] = (_sha256(each), status.st_size)
    return files


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
