"""The templates that a model server has loaded, and the memory that they use."""

from __future__ import annotations

from collections.abc import Sequence

from glide.server.template_server import TemplateServer
from glide.template import Template
from glide.vocabulary import Exit


class WrongRequest(Exception):
    """A sticky job cannot be served on this glidein. `code` is the exit code that the job gets."""

    def __init__(self, reason: str, code: int):
        super().__init__(reason)
        self.code = code


class LoadedTemplates:
    """The templates that a model server has loaded.

    Args:
        memory: memory in MB that all templates may use together; None if the limit is unknown. Then only one template
            stays loaded.

    Attributes:
        servers: a dict from a template's digest to the template's TemplateServer.
        sizes: memory in MB that each template used when it was last loaded. The keys are the templates' digests.
    """

    def __init__(self, memory: float | None):
        self.memory = memory
        self.servers: dict[str, TemplateServer] = {}
        self.sizes: dict[str, float] = {}

    def to_stop_for(self, template: Template) -> list[TemplateServer]:
        """Return the TemplateServers that must free their memory for a template, by sleeping or by ending.

        The template may also be one that is asleep.

        Raises WrongRequest if the template is too large for the memory, or if a server that must stop is in use.
        """
        if self.memory is not None and template.megabytes > self.memory:
            needed = f"{template.model} needs {template.megabytes:.0f} MB"
            raise WrongRequest(f"{needed}, but this glidein has {self.memory:.0f} MB", Exit.SERVER_LOST)
        own = self.servers.get(template.digest)  # it has failed or is asleep; None if there is none
        to_stop = [own] if own and not own.is_asleep else []
        # Stop the servers with code of other owners, because code of two owners must not run under one account at once.
        to_stop += [
            each for each in self.servers.values() if each.template.owner != template.owner and each not in to_stop
        ]
        idle = self.idle(own)
        if any(each not in idle and each is not own for each in to_stop):
            raise WrongRequest("another owner's template is in use on this glidein; try again later", Exit.SERVER_LOST)
        for each in idle:
            if self._fits(template, to_stop):
                break
            to_stop += [] if each in to_stop else [each]
        if not self._fits(template, to_stop):
            raise WrongRequest("no room: other templates are in use", Exit.SERVER_LOST)
        return to_stop

    def idle(self, excluded: TemplateServer | None = None) -> list[TemplateServer]:
        """Return the servers that have no job and are not loading a template.

        The least recently used is first. Sleeping servers are last, because stopping them frees little memory.
        """
        idle = [
            each
            for each in self.servers.values()
            if not each.jobs and not each.waiting_sticky_jobs and each.settled.is_set()
        ]
        return sorted(
            (each for each in idle if each is not excluded), key=lambda each: (each.is_asleep, each.last_used)
        )

    @property
    def are_too_large(self) -> bool:
        """Whether the loaded templates use more memory than they may."""
        return self.memory is not None and self._megabytes() > self.memory

    def _fits(self, template: Template, to_stop: list[TemplateServer]) -> bool:
        """Return whether the memory suffices for a template after the servers in `to_stop` have ended."""
        own = self.servers.get(template.digest)
        if self.memory is None:
            return len(to_stop) == len(self.servers)
        # Before a function has run, the size of its state is unknown. Assume that the state needs all of the memory.
        unknown = self.memory if template.function and not template.files else template.megabytes
        others = [*to_stop, *([own] if own else [])]
        return self.sizes.get(template.digest, unknown) + self._megabytes(others) <= self.memory

    def has_room_for(self, template: Template) -> bool:
        """Return whether the memory suffices for a template that is loaded soon, beside all other templates."""
        return self._fits(template, [])

    def _megabytes(self, to_stop: Sequence[TemplateServer] = ()) -> float:
        """Return the memory in MB that all servers except those in `to_stop` use together."""
        return sum(each.megabytes for each in self.servers.values() if each not in to_stop)

    @property
    def asleep(self) -> str:
        """The digests of the templates that are asleep, with commas between them."""
        return ",".join(digest for digest, each in self.servers.items() if each.is_asleep)

    @property
    def room(self) -> float | None:
        """MB of memory that a new template can use if all idle templates are unloaded; None if the limit is unknown."""
        return None if self.memory is None else max(0.0, self.memory - self._megabytes(self.idle()))

    @property
    def owner(self) -> str:
        """The user whose code or private files are loaded. Only this user's jobs are served. Empty: all users' jobs."""
        return next((each.template.owner for each in self.servers.values()), "")
