"""What came of a run of the kill harness: counts that can be added up, and the text that shows them."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field

from content import Inside, Word

__all__ = ["Report"]


@dataclass
class Report:
    """What came of a run.

    Attributes:
        kills: how many processes were killed.
        moments: by victim, and whether the kill was aimed, at any moment, or during a start: what it was doing.
        worker_died_ms: from a worker's kill to the controller's WorkerDied.
        exit_ms: from a controller's kill to its worker's end.
        counts: the board's words.
        wrong, hangs, strange, left: what must be empty.
    """

    kills: int = 0
    seconds: float = 0.0
    moments: dict[str, int] = field(default_factory=dict)
    victims: dict[str, int] = field(default_factory=dict)
    workers_killed_alone: int = 0
    controllers_killed_alone: int = 0
    worker_died_ms: list[float] = field(default_factory=list)
    exit_ms: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    hangs: list[str] = field(default_factory=list)
    problems: str = ""
    left: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.kills += other.kills
        self.seconds = max(self.seconds, other.seconds)
        self.workers_killed_alone += other.workers_killed_alone
        self.controllers_killed_alone += other.controllers_killed_alone
        for name in ("moments", "victims", "counts"):
            setattr(self, name, dict(Counter(getattr(self, name)) + Counter(getattr(other, name))))
        for name in ("worker_died_ms", "exit_ms", "hangs", "left"):
            getattr(self, name).extend(getattr(other, name))
        self.problems += other.problems

    def count(self, word: Word) -> int:
        return self.counts.get(word.name, 0)

    def inside(self, when: str = "") -> int:
        """How many kills fell inside a publish."""
        return sum(n for key, n in self.moments.items() if key.startswith(when) and key.endswith(Inside.PUBLISH.name))

    def of(self, when: str) -> int:
        return sum(n for key, n in self.moments.items() if key.startswith(when))

    @property
    def wrong(self) -> int:
        return self.count(Word.WRONG_HERE) + self.count(Word.WRONG_THERE)

    @property
    def is_good(self) -> bool:
        # Of the two that are killed together the controller may have had the time to say it.
        spare = self.count(Word.DIED) - self.workers_killed_alone
        is_told = len(self.worker_died_ms) == self.workers_killed_alone and 0 <= spare <= self.victims.get("both", 0)
        has_followed = len(self.exit_ms) == self.controllers_killed_alone
        return is_told and has_followed and not (self.wrong or self.hangs or self.left or self.problems)

    def to_text(self) -> str:
        here, there = self.count(Word.DELIVERED_HERE), self.count(Word.DELIVERED_THERE)
        rows = [
            ("kills", f"{self.kills} in {self.seconds:.0f} s: " + _listed(self.victims)),
            ("inside a publish", _share(self.inside(), self.kills)),
            ("  of the aimed", _share(self.inside("aimed"), self.of("aimed"))),
            ("  of those at any moment", _share(self.inside("random"), self.of("random"))),
            ("  of those during a start", _share(self.inside("start"), self.of("start"))),
            ("1 MiB tensors delivered", f"{here:,} to controllers, {there:,} to workers"),
            ("  answers to 32 at once", f"{self.count(Word.AT_ONCE):,}"),
            ("  wrong", str(self.wrong)),
            (
                "workers killed alone",
                f"{self.workers_killed_alone}, WorkerDied {self.count(Word.DIED)} times, "
                + _times(self.worker_died_ms),
            ),
            (
                "controllers killed alone",
                f"{self.controllers_killed_alone}, worker ended {len(self.exit_ms)} times, " + _times(self.exit_ms),
            ),
            ("tags there for the next worker", str(self.count(Word.KEPT))),
            ("hangs", str(len(self.hangs))),
            ("strange", str(self.count(Word.STRANGE))),
            ("left after a sweep", ", ".join(self.left) or "nothing: no file, semaphore, process or descriptor"),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:{width}}  {value}" for name, value in rows] + self.hangs
        return "\n".join([*lines, self.problems] if self.problems else lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} of {name}" for name, n in sorted(counts.items()))


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" = {100 * part / whole:.1f} %" if whole else "")


def _times(values: list[float]) -> str:
    return f"after {statistics.median(values):.1f} ms, at most {max(values):.1f}" if values else "no times"
