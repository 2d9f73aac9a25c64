"""A controller of ours with ``channel="legacy"`` that asks until it is killed: SCRIPT ID [fork | thread]

Prints a line of JSON when it has started and another after its first answers; each answer is checked. ``fork``: has a
child that holds all its descriptors and outlives it. ``thread``: the thread that started the session has ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import numpy as np

from tr_mmap import PythonSession, WorkerDied


def main(script: str, session_id: str, how: str = "") -> None:
    session = PythonSession(script, session_id, quiet_mode=True, channel="legacy")
    if how == "thread":
        thread = threading.Thread(target=session.start)
        thread.start()
        thread.join()
    else:
        session.start()
    child = 0
    if how == "fork" and (child := os.fork()) == 0:
        signal.pause()
    guard = session._dispatcher.resources._guard.pid
    started = {"worker": session.pid, "guard": guard, "directory": session.session_dir(), "child": child}
    print(json.dumps(started), flush=True)
    number = 0
    while True:
        try:
            values = np.float32([number, number + 1])
            if not np.array_equal(session.calculate("echo", values), values):
                raise SystemExit(f"request {number} got a wrong answer")
            if session.fetch_response(f"say {number}") != str(number):
                raise SystemExit(f"request {number} got a wrong text")
        except WorkerDied:
            session.start()
            print(json.dumps({"worker": session.pid}), flush=True)
        if number == 0:
            print(json.dumps({"working": True}), flush=True)
        number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
