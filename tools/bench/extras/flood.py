"""Many small messages: whether memory and file descriptors of both sides stay as they are."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from .common import fd_count, run_child, status_nbytes

__all__ = ["run"]

_LOOKS: Final = 10


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    count = 10_000 if quick else 100_000
    say(f"{count:,} small messages")
    return run_child(__name__, str(count))


def _child(count: int) -> dict[str, Any]:
    import numpy as np

    from tr_mmap import PythonSession

    x = np.ones(256, np.float32)
    with PythonSession("default", f"bench-{os.getpid()}-flood", quiet_mode=True) as session:
        pids = {"controller": os.getpid(), "worker": json.loads(session.fetch_response("info"))["pid"]}
        looks: list[dict[str, list[int]]] = []
        for _ in range(_LOOKS):
            for number in range(count // _LOOKS // 2):
                x[0] = number
                if session.calculate("echo", x)[0] != number:
                    raise RuntimeError("an answer is wrong")
                session.fetch_response("hello world")
            looks.append({side: [status_nbytes(pid, "VmRSS"), fd_count(pid)] for side, pid in pids.items()})
    # The first tenth warms up: lazy imports, pools, the allocator.
    return {
        "messages": count,
        **{f"{side}_rss_growth_nbytes": looks[-1][side][0] - looks[0][side][0] for side in pids},
        **{f"{side}_fd_growth": looks[-1][side][1] - looks[0][side][1] for side in pids},
        "looks": looks,
    }


if __name__ == "__main__":
    print(json.dumps(_child(int(sys.argv[1]))))
