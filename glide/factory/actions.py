"""The factory's actions as data. glide.factory.plan decides on actions. glide.factory.act carries out the actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Action:
    """One decision of the factory.

    Attributes:
        action: name of this kind of action in the log, the journal and `glide factory plan --json`.
        template: digest of the template; empty if the action concerns no template or all templates.
        count: number of glideins that the action concerns. For a Wait, number of glideins that are still missing.
        reason: why the factory takes this action, as text for people.
    """

    action: ClassVar[str]
    entry: str
    template: str
    count: int
    reason: str

    def public(self) -> dict[str, Any]:
        """Return the fields that `glide factory plan --json` prints."""
        names = ("action", "entry", "template", "count", "reason")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Submit(Action):
    """Submit glideins.

    Attributes:
        avoid: nodes on which the glideins must not run.
        prefer: nodes to use first, because they have the template's files.
        last_resort: nodes on which the template did not load. They are used only if no other node is free.
    """

    action = "submit"
    avoid: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    last_resort: tuple[str, ...] = ()


@dataclass(frozen=True)
class Retarget(Action):
    """Submit sticky jobs, so that `count` running glideins load the template `template`.

    Attributes:
        slots: names of the lanes of these glideins. Each lane gets one sticky job.
    """

    action = "submit"
    slots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Remove(Action):
    """Remove glideins that no job uses. A glidein stays if a job has claimed one of its lanes since the snapshot.

    Attributes:
        jobs: the glideins' outer jobs, each as CLUSTER.PROC.
    """

    action = "remove"
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drain(Remove):
    """Remove glideins, even if jobs run on their lanes."""

    action = "drain"


@dataclass(frozen=True)
class Expunge(Action):
    """Remove from the collector the machine ads of glideins that no longer run.

    Attributes:
        glide_ids: the GlideIds of these glideins.
    """

    action = "expunge"
    glide_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wait(Action):
    """Do nothing in this cycle for a template, or for an entry if `template` is empty.

    Attributes:
        full: True if a suitable entry has as many glideins as a limit allows. Then the wait ends when one of these
            glideins ends.
    """

    action = "wait"
    full: bool = False
