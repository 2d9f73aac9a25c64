"""A controller for the tests of life and death: SESSION_ID MODE [ARGUMENTS]. Says in JSON when it has got there."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from support import TOOLS

from tr_mmap import PythonSession


def say(session: PythonSession, **more: Any) -> None:
    print(json.dumps({"dir": session.session_dir(), "worker": int(session.fetch_response("pid")), **more}), flush=True)


def main(session_id: str, mode: str, *arguments: str) -> None:
    session = PythonSession(TOOLS, session_id, quiet_mode=True)
    if mode == "never_ready":
        with PythonSession(arguments[0], session_id, quiet_mode=True):
            raise AssertionError("unreachable")
    if mode == "no_with":
        session.start()
        session.wait_until_ready()
        say(session)
        sys.stdin.read()
        return  # and leave the rest to the library
    if mode == "try":
        with session:
            say(session)
        return
    with session:
        session.send_tensor(np.arange(1000.0), "a")
        view = session.fetch_tensor("echo a")
        if mode == "child":
            say(session, child=int(session.fetch_response("child")))
        else:
            say(session)
        if mode == "raise":
            raise ArithmeticError("in the body")
        if mode == "exit":
            sys.exit(7)
        if mode == "wait":
            session.send_request(f"gate {arguments[0]}")
            session.wait_for_response(600_000)
        elif mode == "fetch":
            session.fetch_tensor(f"gate {arguments[0]}", 600_000)
        sys.stdin.read()
        assert view.sum() == 499500.0


if __name__ == "__main__":
    gc.freeze()  # as in tools.py
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background ignores it
    main(*sys.argv[1:])
