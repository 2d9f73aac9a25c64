"""With nothing in flight, nothing wakes the program: neither its loop nor a thread of the session's."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import TOOLS, environment, wait_until

WATCHED_S = 1.3  # longer than the pause between two looks while something is in flight

ASYNCIO = """
import asyncio, sys
from tr_mmap import aio

async def main():
    async with aio.PythonSession(sys.argv[1], "idle", quiet_mode=True) as session:
        for _ in range(3):
            answers = await asyncio.gather(*(session.calculate(f"say {number}") for number in range(50)))
        assert answers == [str(number) for number in range(50)]
        never = asyncio.get_running_loop().create_future()
        print("idle", flush=True)
        await never
"""

PROGRAMS = {
    "asyncio": f"{ASYNCIO}\nasyncio.run(main())",
    "uvloop": f"{ASYNCIO}\nimport uvloop\nuvloop.run(main())",
    "futures": """
import signal, sys
from tr_mmap import PythonSession

with PythonSession(sys.argv[1], "idle", quiet_mode=True) as session:
    futures = [session.submit(f"say {number}") for number in range(50)]
    assert [each.result() for each in reversed(futures)] == [str(number) for number in reversed(range(50))]
    print("idle", flush=True)
    signal.pause()
""",
}


def switches(pid: int) -> dict[str, int] | None:
    """How often each thread has gone to sleep; None while one of them runs."""
    found = {}
    for path in Path(f"/proc/{pid}/task").iterdir():
        fields = dict(line.split(":\t", 1) for line in (path / "status").read_text().splitlines() if ":\t" in line)
        if not fields["State"].startswith("S"):
            return None
        found[path.name] = int(fields["voluntary_ctxt_switches"])
    return found


@pytest.mark.parametrize("way", PROGRAMS)
def test_nothing_wakes_a_program_whose_requests_are_answered(way: str) -> None:
    if way == "uvloop":
        pytest.importorskip("uvloop")
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAMS[way], TOOLS],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # says that it was interrupted
        env=environment(),
        text=True,
    )
    with program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "idle\n"
            if way == "futures":  # their thread looks once more
                time.sleep(WATCHED_S)
            wait_until(lambda: switches(program.pid) is not None)
            before = switches(program.pid)
            time.sleep(WATCHED_S)
            assert before is not None
            assert switches(program.pid) == before
        finally:
            program.send_signal(signal.SIGINT)  # so that it ends its session
