"""A worker whose system calls fail on demand: ``arm NTH ERRNO IS_FOREVER``, then any request, then ``disarm``."""

from __future__ import annotations

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from faults import Faults, Plan

from tr_mmap import Server


class Faulty(Server):
    """Fails from the moment when the next request's handler would begin until it is disarmed."""

    def __init__(self) -> None:
        super().__init__(framework="numpy")
        self.faults = Faults(pytest.MonkeyPatch())
        self.plan: Plan | None = None

    def main_logic(self, command: str, parameters: str) -> bool:
        if command == "disarm":
            self.write_response("", " ".join(self.faults.disarm()))
        elif command == "arm":
            nth, number, is_forever = map(int, parameters.split())
            self.plan = Plan(nth, number, bool(is_forever))
            self.write_response("", "armed")
        else:
            if self.plan is not None:
                self.faults.arm(self.plan)
                self.plan = None
            return super().main_logic(command, parameters)
        return True


server = Faulty()


@server.command("echo")
def echo(*tensors):
    return tensors


@server.command("loan")
def loan(x):
    result = server.empty(x.shape, x.dtype)
    result[...] = x
    return result


@server.command("repeat")
def repeat(text: str, count: int) -> str:
    return text * count


if __name__ == "__main__":
    server.run()
