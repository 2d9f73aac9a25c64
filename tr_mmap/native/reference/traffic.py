"""Plain fields that the controller's fast path and Python share. They do nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["Counters", "Pending", "SentResults", "TurnWords"]


class Pending:
    """One request of a session; ``controller/pending.py`` says what each field means."""

    __slots__ = (
        "asker",
        "deadline_s",
        "framework",
        "held",
        "is_abandoned",
        "is_given_up",
        "is_lost",
        "is_sent",
        "message",
        "on_done",
        "order",
        "outcome",
        "seq",
    )

    def __init__(self, message: Any, framework: str | None = None) -> None:
        self.message = message
        self.framework = framework
        self.deadline_s = 0.0
        self.seq = self.order = 0
        self.asker: Any = None
        self.held: Any = None
        self.on_done: Any = None
        self.outcome: Any = None
        self.is_abandoned = self.is_given_up = self.is_lost = self.is_sent = False


class TurnWords:
    """Which thread has a turn.

    Attributes:
        owner: identifies the thread; 0 if none has it.
        queue: those that wait for it.
        on_free: called once when it is given back; None for nothing.
    """

    __slots__ = ("on_free", "owner", "queue")

    def __init__(self) -> None:
        self.owner = 0
        self.queue: Any = None
        self.on_free: Any = None


class Counters:
    """Counts of a session's requests.

    Attributes:
        seq: the number of the last one.
        sent: how many were sent.
        limit: most in flight.
        blocked: how many reasons there are to send none.
        is_watched: Python looks how far requests are, so it sends them.
    """

    __slots__ = ("blocked", "is_watched", "limit", "sent", "seq")

    def __init__(self) -> None:
        self.seq = self.sent = self.limit = self.blocked = 0
        self.is_watched = False


class SentResults:
    """The segments of responses that the controller has not consumed."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[int, list[Any]]] = []

    def add(self, order: int, segments: list[Any]) -> None:
        """Keep the segments of a list, and empty it: the response that names them was sent.

        Args:
            order: how many responses were sent before.
            segments: a list.
        """
        if segments:
            self._entries.append((order, segments[:]))
            segments.clear()

    def release(self, count: int) -> None:
        """The controller has consumed so many responses: release their segments."""
        while self._entries and self._entries[0][0] < count:
            for segment in self._entries.pop(0)[1]:
                segment.release()
