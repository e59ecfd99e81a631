"""Choose the next call and its lane. This module only computes: it uses neither a network nor a clock.

Users take turns. The next call belongs to the user with the fewest calls on lanes. A lane gets at most as many calls as
its engine can compute at a time, so that the other calls stay in this queue, where users are treated equally.

Calls with the same beginning go to the same lane while its load allows it, because an engine keeps the keys and values
of earlier prompts, and need not compute them again.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

# A call goes to the lane with the longest common beginning if the load of this lane is at most by this number higher
# than the load of the least loaded lane. The load is the number of calls divided by the capacity.
UNEVEN = 0.25
SHORTEST_PREFIX, LONGEST_PREFIX = 64, 16384  # lengths of the beginnings that are compared, in characters
MOST_PREFIXES = 1 << 16  # number of beginnings that are remembered for a model
# If this number of lanes were lost while they computed a call, the call may be the reason, and it gets an error.
MOST_LOSSES = 10
LONGEST_TEXT = 64_000_000  # maximum length of a streamed text, in characters


@dataclass(eq=False)
class LiveCall:
    """A call that has no result yet.

    Attributes:
        number: the call's number, unique in this process.
        user: name of the user who waits for the result.
        fields: the fields of a record (glide.protocol.request).
        result: future of the result, which has the fields of a line of results.jsonl.
        lane: the lane that computes the call; None while the call waits.
        losses: number of lanes that were lost while they computed the call.
        on_text: function that gets the pieces of the text; None if the text is not streamed.
        ends_on_loss: whether the call ends with an error if its lane is lost after a piece of the text was sent.
            Otherwise, another lane computes the text again, and only the rest is sent.
        sent: the part of the text that the client has got.
        received: the part of the text that the present lane has sent.
        is_answered: whether the lane has sent the result, so that it need not be told that the call has ended.
    """

    number: int
    user: str
    fields: dict[str, Any]
    result: asyncio.Future[dict[str, Any]]
    lane: LaneLoad | None = None
    losses: int = 0
    on_text: Callable[[str], None] | None = None
    ends_on_loss: bool = False
    sent: str = ""
    received: str = ""
    is_answered: bool = False

    def add_text(self, piece: str | None) -> bool:
        """Pass a piece of the text on, if the client has not got it from an earlier lane.

        Args:
            piece: the next piece; None if the text begins again.

        Returns:
            False if the text differs from what the client has got.
        """
        self.received = "" if piece is None else self.received + piece
        if len(self.received) > LONGEST_TEXT:
            return False
        common = min(len(self.received), len(self.sent))
        if self.received[:common] != self.sent[:common]:
            return False
        if self.on_text is not None and len(self.received) > len(self.sent):
            self.on_text(self.received[len(self.sent) :])
            self.sent = self.received
        return True

    @property
    def prefixes(self) -> list[int]:
        """Hashes of the beginnings of the prompt; the shortest beginning is first."""
        prompt = self.fields["prompt"]
        text = f"{self.fields.get('adapter', '')} {prompt if isinstance(prompt, str) else json.dumps(prompt)}"
        found, length = [], SHORTEST_PREFIX
        while length <= min(len(text), LONGEST_PREFIX):
            found.append(hash(text[:length]))
            length *= 2
        return found


@dataclass(eq=False)
class LaneLoad:
    """A lane that is connected, and its calls.

    Attributes:
        glidein: GlideId of the lane's glidein.
        capacity: number of calls that the engine should have at a time; 0 while it is not ready.
        is_ending: whether the lane gets no further calls.
        calls: the calls that the lane computes, by number.
    """

    glidein: str
    capacity: int = 0
    is_ending: bool = False
    calls: dict[int, LiveCall] = field(default_factory=dict)

    @property
    def load(self) -> float:
        return len(self.calls) / self.capacity if self.capacity else float("inf")

    @property
    def is_free(self) -> bool:
        return not self.is_ending and len(self.calls) < self.capacity


Lane = TypeVar("Lane", bound=LaneLoad)


class CallRouter(Generic[Lane]):
    """The calls of one model, and the lanes that compute them.

    Attributes:
        lanes: the connected lanes.
        waiting: for each user with waiting calls, these calls. The user who waits longest for a turn is first.
        active: for each user, the number of calls on lanes.
        lost: number of calls that were begun again because a lane was lost.
    """

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.waiting: OrderedDict[str, deque[LiveCall]] = OrderedDict()
        self.active: Counter[str] = Counter()
        self.lost = 0
        self._prefixes: OrderedDict[int, Lane] = OrderedDict()

    @property
    def queued(self) -> int:
        """Number of calls that wait for a lane."""
        return sum(map(len, self.waiting.values()))

    @property
    def in_flight(self) -> int:
        """Number of calls on lanes."""
        return sum(len(lane.calls) for lane in self.lanes)

    def add(self, call: LiveCall) -> None:
        """Put a call at the end of its user's queue."""
        self.waiting.setdefault(call.user, deque()).append(call)

    def assignments(self) -> Iterator[tuple[Lane, LiveCall]]:
        """Give waiting calls to lanes, as long as a lane is free. Yield each lane with its new call."""
        while self.waiting and (free := [lane for lane in self.lanes if lane.is_free]):
            user = min(self.waiting, key=lambda each: self.active[each])
            calls = self.waiting[user]
            call = calls.popleft()
            self.waiting.move_to_end(user)
            if not calls:
                del self.waiting[user]
            lane = self._lane_for(call, free)
            call.lane = lane
            lane.calls[call.number] = call
            self.active[user] += 1
            yield lane, call

    def _lane_for(self, call: LiveCall, free: list[Lane]) -> Lane:
        least = chosen = min(free, key=lambda lane: lane.load)
        prefixes = call.prefixes
        if len(self.lanes) > 1:
            known = (self._prefixes.get(prefix) for prefix in reversed(prefixes))
            same = next((lane for lane in known if lane is not None), None)
            if same in free and same.load <= least.load + UNEVEN:
                chosen = same
        for prefix in prefixes:
            self._prefixes[prefix] = chosen
            self._prefixes.move_to_end(prefix)
        while len(self._prefixes) > MOST_PREFIXES:
            self._prefixes.popitem(last=False)
        return chosen

    def finish(self, call: LiveCall) -> Lane | None:
        """Remove a call that has its result, or whose user has gone. Return its lane; None if it waits."""
        lane = next((each for each in self.lanes if each is call.lane), None)
        if call.lane is not None:
            call.lane.calls.pop(call.number, None)
            call.lane = None
            self.active[call.user] -= 1
            self.active += Counter()  # drop users without calls
        elif call in self.waiting.get(call.user, ()):
            self.waiting[call.user].remove(call)
            if not self.waiting[call.user]:
                del self.waiting[call.user]
        return lane

    def lose(self, lane: Lane) -> list[LiveCall]:
        """Remove a lane that was lost. Its calls wait again, before all other calls of their users.

        Returns:
            The calls that do not wait again, because they may be the reason for the losses.
        """
        self.lanes.remove(lane)
        self._prefixes = OrderedDict((key, each) for key, each in self._prefixes.items() if each is not lane)
        refused = []
        for call in reversed(list(lane.calls.values())):
            self.finish(call)
            if call.result.done():
                continue
            call.losses += 1
            call.received = ""
            if call.losses >= MOST_LOSSES or (call.ends_on_loss and call.sent):
                refused.append(call)
                continue
            self.lost += 1
            self.waiting.setdefault(call.user, deque()).appendleft(call)
        return refused
