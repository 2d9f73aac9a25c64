"""CPU time of an idle pair, controller and worker together. The controller is a process that only waits."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from .common import cpu_ns, run_child

__all__ = ["run"]

_SETTLE_S = 0.5


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    seconds = 3 if quick else 10
    say(f"idle CPU over {seconds} s")
    return run_child(__name__, str(seconds))


def _child(seconds: float) -> dict[str, Any]:
    from tr_mmap import PythonSession

    with PythonSession("default", f"bench-{os.getpid()}-idle", quiet_mode=True) as session:
        worker = json.loads(session.fetch_response("info"))["pid"]
        time.sleep(_SETTLE_S)
        pids = (os.getpid(), worker)
        before = [cpu_ns(pid) for pid in pids]
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        used = [cpu_ns(pid) - start for pid, start in zip(pids, before, strict=True)]
    share = [100 * each / 1e9 / took for each in used]
    return {"seconds": round(took, 2), "controller_percent": round(share[0], 4), "worker_percent": round(share[1], 4)}


if __name__ == "__main__":
    print(json.dumps(_child(float(sys.argv[1]))))
