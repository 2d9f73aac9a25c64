"""What a call costs, by kind, for both frameworks and both ways to write a worker.

Kinds are texts, copies, loans, tags, several results, dicts and errors. And plain code: ``x * 1.5`` of 64 MiB, beside
the same in the caller.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from tr_mmap import PythonSession
from tr_mmap.errors import RemoteError

from ..peers.base import missing
from .common import interleave

__all__ = ["run"]

_WORKER: Final = Path(__file__).with_name("calls_worker.py")
_COUNT, _LARGE_COUNT = 256, 16 << 20  # elements of float32: 1 KiB, 64 MiB


def _array(framework: str, count: int) -> Any:
    array = np.linspace(0, 1, count, dtype=np.float32)
    if framework == "numpy":
        return array
    import torch

    return torch.from_numpy(array)


def _calls(session: PythonSession, framework: str, has_names: bool) -> dict[str, Callable[[], object]]:
    """Each kind of call, with a tensor of 1 KiB if no size is said, by its name in the table."""
    x = _array(framework, _COUNT)
    session.send_tensor(x, "kept")

    def lend(count: int) -> object:  # what fills it is the program's, here and there
        return session.calculate("loan", session.empty((count,)))

    def send_new() -> object:
        session.send_tensor(x, "new")
        return session.fetch_tensor("echo new")

    def fail() -> None:
        with suppress(RemoteError):
            session.fetch_response("fail")

    calls: dict[str, Callable[[], object]] = {
        "text": lambda: session.fetch_response("text hello"),
        "copied": lambda: session.calculate("echo", x),
        "loaned": lambda: lend(_COUNT),
        "loaned_large": lambda: lend(_LARGE_COUNT),
        "tag": lambda: session.fetch_tensor("echo kept"),
        "new_tag": send_new,
        "three": lambda: session.calculate("three", x),
        "error": fail,
    }
    if has_names:
        calls["named"] = lambda: session.calculate("named", {"x": x})
    return calls


def _plain(session: PythonSession, framework: str) -> dict[str, Callable[[], object]]:
    """``x * 1.5`` of 64 MiB: here, and by the worker."""
    x = _array(framework, _LARGE_COUNT)
    session.send_tensor(x, "large")
    return {
        "here": lambda: x * 1.5,
        "tag": lambda: session.fetch_tensor("grow large"),
        "calculate": lambda: session.calculate("grow", x),
    }


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The cells of the table: ``small`` by framework and way to write the worker, ``plain`` by framework."""
    say("kinds of calls")
    frameworks = ["numpy"] if missing("torch") else ["numpy", "torch"]
    small: dict[str, dict[str, Any]] = {}
    plain: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        actions: dict[str, Callable[[], object]] = {}
        sessions: dict[str, PythonSession] = {}
        for framework in frameworks:
            for kind in ("decorator", "subclass"):
                name = f"{framework} {kind}"
                session = PythonSession(
                    str(_WORKER), f"bench-{os.getpid()}-{name.replace(' ', '-')}", quiet_mode=True, framework=framework,
                    args=(kind, framework),
                )  # fmt: skip
                sessions[name] = stack.enter_context(session)
                calls = _calls(session, framework, kind == "decorator")
                actions |= {f"{name} {call}": action for call, action in calls.items()}
        found = interleave(actions, rounds=6 if quick else 30, batch=20 if quick else 100, warm=10)
        for key, summary in found.items():
            name, _, call = key.rpartition(" ")
            small.setdefault(name, {})[call] = summary.to_json()
        say("plain code")
        for framework in frameworks:
            actions = _plain(sessions[f"{framework} decorator"], framework)
            times = interleave(actions, rounds=4 if quick else 15, batch=2, warm=2)
            plain[framework] = {call: summary.to_json() for call, summary in times.items()}
    return {"small": small, "plain": plain}
