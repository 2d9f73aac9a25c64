"""A controller that forks while it holds views: numpy or torch. Says what each side sees."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from support import TOOLS

from tr_mmap import PythonSession, SessionNotStarted


def main(mode: str) -> None:
    array = np.random.default_rng(1).random(5000)
    sent: Any = array
    if mode == "torch":
        import torch

        sent = torch.from_numpy(array)
    with PythonSession(TOOLS, "forking", quiet_mode=True) as session:
        view = session.calculate("echo", sent)
        loan = session.empty(5000, "float64", mode)
        loan[...] = sent
        session.send_tensor(loan, "loan")
        unsent = session.empty(5000, "float64", mode)
        unsent[...] = 1
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write_end)
            os.read(read_end, 1)  # until the parent has used the session for long
            assert bytes(np.asarray(view)) == array.tobytes()
            assert bytes(np.asarray(loan)) == array.tobytes()
            for request in (lambda: session.fetch_response("hello"), lambda: session.send_tensor(array, "x")):
                try:
                    request()
                except SessionNotStarted:
                    continue
                raise AssertionError("the parent's session was used")
            assert not session.is_alive()
            del view, loan, unsent
            print("child right", flush=True)
            sys.exit(5)  # with all that an interpreter does at its end
        os.close(read_end)
        for number in range(300):
            assert session.calculate("echo", np.full(5000, float(number)))[-1] == number
            session.send_tensor(np.full(5000, float(number)), "loan")
        os.write(write_end, b"x")
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 5, status
        assert os.path.isdir(session.session_dir())
        assert session.is_alive()
        assert bytes(np.asarray(view)) == array.tobytes()
        for number in range(300):
            assert session.calculate("echo", np.full(5000, float(number)))[-1] == number
        assert bytes(np.asarray(view)) == array.tobytes()
        session.send_tensor(unsent, "unsent")
        assert session.fetch_response("total unsent") == "5000"
    assert bytes(np.asarray(view)) == array.tobytes()
    print("parent right")


if __name__ == "__main__":
    main(sys.argv[1])
