"""Eight processes at one store are like one after another: each change has its commit, in one order, and each read
shows what a dictionary would hold after one of the commits.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from children import Mother
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tr_mmap.store import Store

PROCESSES = 8
IDS = st.sampled_from("abcd")
KINDS = st.integers(0, 1)
STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(IDS, min_size=1, max_size=2, unique=True)),
    st.tuples(st.just("update"), IDS),
    st.tuples(st.just("compare"), IDS, st.integers(1, 6)),
    st.tuples(st.just("delete"), IDS),
    st.tuples(st.just("clear"), KINDS),
    st.tuples(st.just("compact")),
    st.tuples(st.just("get"), IDS),
    st.tuples(st.just("list")),
    st.tuples(st.just("filter"), KINDS),
    st.tuples(st.just("search")),
    st.tuples(st.just("words")),
    st.tuples(st.just("snapshot")),
)
PROGRAMS = st.lists(st.lists(STEPS, min_size=4, max_size=16), min_size=PROCESSES, max_size=PROCESSES)

State = dict[str, tuple[int, str]]


@pytest.fixture(scope="module")
def mothers() -> Iterator[list[Mother]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Mother()) for _ in range(PROCESSES)]


class Model:
    """What the store must hold after each commit."""

    def __init__(self, epoch: int) -> None:
        self.last: dict[str, int] = {}  # versions, also of what is gone
        self.states: dict[int, State] = {epoch: {}}
        self.epoch = epoch

    def commit(self, epoch: int, kind: str, arguments: list[Any], value: str, result: Any) -> None:
        assert epoch == self.epoch + 1
        state = dict(self.states[self.epoch])
        if kind == "add":
            for each in arguments[0]:
                assert each not in state
                self._put(state, each, value)
        elif kind in ("update", "compare"):
            assert arguments[0] in state
            assert kind == "update" or state[arguments[0]][0] == arguments[1]
            self._put(state, arguments[0], value)
        elif kind == "delete":
            assert result is (arguments[0] in state)
            self._remove(state, [arguments[0]])
        elif kind == "clear":
            for each in result:  # those that it has found, and that were still there
                assert len(state[each][1]) % 2 == arguments[0]
            self._remove(state, result)
        self.epoch = epoch
        self.states[epoch] = state

    def _put(self, state: State, each: str, value: str) -> None:
        self.last[each] = self.last.get(each, 0) + 1
        state[each] = self.last[each], value

    def _remove(self, state: State, gone: list[str]) -> None:
        for each in gone:
            if state.pop(each, None) is not None:
                self.last[each] += 1

    def shows(self, epoch: int, kind: str, arguments: list[Any], result: Any) -> bool:
        state = self.states[epoch]
        if kind == "there":
            return (arguments[0] in state) is result
        if kind == "version":
            return arguments[0] in state and state[arguments[0]][0] == result
        found = {each: tuple(seen) for each, seen in (result or {}).items()}
        if kind == "get":
            return found == {each: seen for each, seen in state.items() if each == arguments[0]}
        if kind == "filter":
            return found == {each: seen for each, seen in state.items() if len(seen[1]) % 2 == arguments[0]}
        return kind == "compact" or found == state


def check(said: list[list[list[Any]]], epoch: int) -> Model:
    lines = [line for each in said for line in each]
    commits = [line[1:] for line in lines if line[0] == "did"]
    commits += [[epoch, "nothing", [], "", None] for line in lines if line[0] == "kept" for epoch in line[1]]
    model = Model(epoch)
    for commit in sorted(commits):
        model.commit(*commit)
    for line in lines:
        if line[0] == "saw":
            low, high, kind, arguments, result = line[1:]
            assert any(model.shows(at, kind, arguments, result) for at in range(low, high + 1)), line
    for each in said:  # what a process sees is never older than what it has seen
        lows = [line[1] for line in each if line[0] in ("saw", "did")]
        assert lows == sorted(lows)
    return model


def test_every_read_shows_a_committed_moment_and_commits_have_one_order(mothers: list[Mother], is_full: bool) -> None:
    @settings(
        max_examples=300 if is_full else 4,
        deadline=None,
        derandomize=not is_full,
        phases=[Phase.generate],  # the same programs may go well the next time
        suppress_health_check=list(HealthCheck),
    )
    @given(PROGRAMS)
    def attempt(programs: list[list[tuple[Any, ...]]]) -> None:
        root = Path(tempfile.mkdtemp(prefix="tr_test_store_", dir="/dev/shm"))
        try:
            with Store("model", root, dim=4, indexed=("kind",)) as store:
                before = store.stats().epoch
                for who, (mother, steps) in enumerate(zip(mothers, programs, strict=True)):
                    mother.start("player.play", str(root), who, steps)
                for mother in mothers:
                    assert mother.hear() == ["ready"]
                (root / "go").touch()
                ended = [mother.end() for mother in mothers]
                assert [status for _, status in ended] == [0] * PROCESSES
                model = check([said for said, _ in ended], before)
                assert model.epoch == store.stats().epoch
                found = {record.id: (record.version, record.metadata["value"]) for record in store.get_all()}
                assert found == model.states[model.epoch]
                assert store.check() == []
        finally:
            shutil.rmtree(root)

    attempt()
