"""What the scheduler is made of, against models: the queue, the breaker, the limit of requests."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tr_mmap.gateway.breakers import Breaker
from tr_mmap.gateway.errors import CircuitOpen, RateLimited
from tr_mmap.gateway.queues import AgeingQueue, FairQueue
from tr_mmap.gateway.rates import RateLimit

PRIORITIES = st.integers(-3, 3)
MOST_APART = 6


@dataclass(eq=False)
class Item:
    priority: int
    came_s: int
    number: int


class QueueMachine(RuleBasedStateMachine):
    """Times are whole and the ageing is a power of two, so that a model computes the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.ageing_s = 4.0
        self.queue: AgeingQueue[Item] = AgeingQueue(self.ageing_s)
        self.waiting: list[Item] = []
        self.gone: list[Item] = []
        self.now_s = 0
        self.number = 0

    @rule(seconds=st.integers(0, 60))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(priority=PRIORITIES)
    def push(self, priority: int) -> None:
        item = Item(priority, self.now_s, self.number)
        self.number += 1
        self.queue.push(item, priority, self.now_s)
        self.waiting.append(item)

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def push_again_what_waits(self, data: st.DataObject) -> None:
        with pytest.raises(ValueError, match="waits already"):
            self.queue.push(data.draw(st.sampled_from(self.waiting)), 0, self.now_s)

    @rule()
    def pop(self) -> None:
        if not self.waiting:
            with pytest.raises(IndexError):
                self.queue.pop()
            return
        item = self.queue.pop()
        now = lambda each: each.priority + (self.now_s - each.came_s) / self.ageing_s  # noqa: E731 - as it counts now
        assert item is max(self.waiting, key=lambda each: (now(each), -each.number))
        self.waiting.remove(item)
        self.gone.append(item)
        for each in self.waiting:  # nobody waits for ever: who comes that much later never goes before
            assert item.came_s <= each.came_s + MOST_APART * self.ageing_s

    @rule(data=st.data())
    @precondition(lambda self: self.waiting or self.gone)
    def remove(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting + self.gone))
        assert self.queue.remove(item) is (item in self.waiting)
        if item in self.waiting:
            self.waiting.remove(item)
            self.gone.append(item)

    @rule()
    def count(self) -> None:
        assert len(self.queue) == len(self.waiting)


TestAgeingQueue = QueueMachine.TestCase


def test_a_queue_keeps_nothing_of_what_was_removed() -> None:
    queue: AgeingQueue[int] = AgeingQueue(1.0)
    for number in range(10_000):
        queue.push(number, 0, number)
        assert queue.remove(number)
    assert len(queue._heap) < 200
    queue.push(7, 0, 10_000)
    assert queue.pop() == 7


class FairMachine(RuleBasedStateMachine):
    """Several subjects: whose turn it is, and which of its items, against a list for each."""

    SUBJECTS = ("ada", "eve", "bob")

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[tuple[str, int, int]] = FairQueue(1e9)
        self.waiting: dict[str, list[tuple[str, int, int]]] = {}  # whose turn is next is first
        self.number = 0

    @rule(subject=st.sampled_from(SUBJECTS), priority=PRIORITIES)
    def push(self, subject: str, priority: int) -> None:
        self.number += 1
        item = subject, priority, self.number
        self.queue.push(item, subject, priority, 0.0)
        self.waiting.setdefault(subject, []).append(item)
        with pytest.raises(ValueError, match="waits already"):
            self.queue.push(item, "another", 0, 0.0)

    @rule()
    def pop(self) -> None:
        if not self.waiting:
            with pytest.raises(IndexError):
                self.queue.pop()
            return
        subject = next(iter(self.waiting))
        items = self.waiting.pop(subject)
        item = max(items, key=lambda each: (each[1], -each[2]))
        assert self.queue.pop() == item
        items.remove(item)
        if items:
            self.waiting[subject] = items

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def remove(self, data: st.DataObject) -> None:
        subject = data.draw(st.sampled_from(sorted(self.waiting)))
        item = data.draw(st.sampled_from(self.waiting[subject]))
        assert self.queue.remove(item)
        assert not self.queue.remove(item)
        self.waiting[subject].remove(item)
        if not self.waiting[subject]:
            del self.waiting[subject]

    @rule()
    def count(self) -> None:
        assert len(self.queue) == sum(map(len, self.waiting.values()))
        assert set(self.queue._queues) == set(self.waiting)  # nothing of others is left


TestFairQueue = FairMachine.TestCase


class BreakerMachine(RuleBasedStateMachine):
    """Runs that begin and end in any order, on a clock of its own."""

    FAILURES, OPEN_S = 2, 5

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(self.FAILURES, self.OPEN_S)
        self.now_s = 0
        self.runs: list[bool] = []  # that go on: whether it is the one that tries
        self.failed = 0
        self.open_until_s: int | None = None

    @rule(seconds=st.integers(1, 12))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds

    @rule()
    def begin(self) -> None:
        is_open = self.open_until_s is not None
        if is_open and (self.now_s < self.open_until_s or True in self.runs):
            with pytest.raises(CircuitOpen) as told:
                self.breaker.check("x", self.now_s)
            assert told.value.retry_after_s == max(self.open_until_s - self.now_s, 0.1)
            return
        assert self.breaker.check("x", self.now_s) is is_open
        self.runs.append(is_open)

    @rule(data=st.data(), end=st.sampled_from(["succeeded", "failed", "left"]))
    @precondition(lambda self: self.runs)
    def end(self, data: st.DataObject, end: str) -> None:
        is_trial = self.runs.pop(data.draw(st.integers(0, len(self.runs) - 1)))
        counts = is_trial or self.open_until_s is None
        if end == "succeeded":
            self.breaker.succeeded(is_trial=is_trial)
            if counts:
                self.failed, self.open_until_s = 0, None
        elif end == "failed":
            self.breaker.failed(self.now_s, is_trial=is_trial)
            if counts:
                self.failed += 1
                if self.failed >= self.FAILURES:
                    self.open_until_s = self.now_s + self.OPEN_S
        else:
            self.breaker.left(is_trial=is_trial)
        assert self.breaker.is_open is (self.open_until_s is not None)


TestBreaker = BreakerMachine.TestCase


def test_a_run_that_began_before_a_breaker_opened_lets_no_second_one_try() -> None:
    breaker = Breaker(1, 10)
    assert breaker.check("x", 0) is False
    assert breaker.check("x", 0) is False
    breaker.failed(0, is_trial=False)
    assert breaker.check("x", 10) is True
    breaker.left(is_trial=False)
    with pytest.raises(CircuitOpen):
        breaker.check("x", 11)
    breaker.left(is_trial=True)
    assert breaker.check("x", 11) is True


def test_a_breaker_of_zero_failures_never_opens() -> None:
    breaker = Breaker(0, 10)
    for now_s in range(100):
        assert breaker.check("x", now_s) is False
        breaker.failed(now_s, is_trial=False)
    assert not breaker.is_open


@given(
    per_minute=st.sampled_from([1, 60, 600]),
    burst=st.integers(1, 5),
    asked=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 90)), max_size=60),
)
@example(per_minute=1, burst=2, asked=[("a", 0), ("a", 0), ("a", 80), ("a", 40)])  # sums that floats round down
def test_a_rate_limit_lets_through_what_a_bucket_holds_and_no_more(
    per_minute: int, burst: int, asked: list[tuple[str, int]]
) -> None:
    limit = RateLimit(per_minute, burst)
    contents: dict[str, Fraction] = {}
    seen_s: dict[str, int] = {}
    now_s = 0
    for token, later_s in asked:
        now_s += later_s
        filled = Fraction(per_minute, 60) * (now_s - seen_s.get(token, now_s))
        contents[token] = min(Fraction(burst), contents.get(token, Fraction(burst)) + filled)
        seen_s[token] = now_s
        if contents[token] < 1:
            with pytest.raises(RateLimited) as refused:
                limit.take(token, now_s)
            wait_s = float((1 - contents[token]) * 60 / per_minute)
            assert refused.value.retry_after_s == pytest.approx(wait_s)
        else:
            limit.take(token, now_s)
            contents[token] -= 1


def test_a_rate_limit_forgets_full_buckets_and_no_others() -> None:
    limit = RateLimit(60, 1)
    for number in range(10_000):
        limit.take(f"token {number}", 0.0)
    limit.take("busy", 10.0)
    with pytest.raises(RateLimited):
        limit.take("busy", 10.5)
    assert list(limit._buckets) == ["busy"]
