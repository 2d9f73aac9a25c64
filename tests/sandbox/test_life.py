"""What a sandbox promises whatever comes between: interrupts, a zygote that stands still, ends, new registrations."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from support import wait_until

from tr_mmap.sandbox import (
    Algorithm,
    AlgorithmError,
    Allow,
    ComputeRequest,
    ComputeResponse,
    DeadlineExceeded,
    LimitExceeded,
    Limits,
    NotAllowed,
    RunCancelled,
    Sandbox,
    SandboxBroken,
    host,
)
from tr_mmap.sandbox.process import Process

ONE = Algorithm("one", b"output = 1", None)
COUNTS = "import builtins\nbuiltins.n = getattr(builtins, 'n', 0) + 1\noutput = builtins.n"
SLEEPS = "import time\ntime.sleep(1000)"


eventually = partial(wait_until, bound_s=20)


def host_of(box: Sandbox) -> host.Host:
    found: host.Host = box._executor._host  # type: ignore[attr-defined]
    return found


# -- the way to a process ---------------------------------------------------------------------------------------------


class _Interrupted(BaseException):
    pass


@pytest.mark.timeout(50)
@pytest.mark.parametrize("is_before", [True, False], ids=["before it is read", "after"])
def test_runs_go_on_after_interrupts_while_they_waited_for_a_process(
    is_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler raises just when the zygote's packet is taken, which nobody has then."""
    decode = host.decode
    with Sandbox() as box:
        for _ in range(4):

            def interrupt(data: bytes, kind: type) -> object:
                monkeypatch.setattr(host, "decode", decode)
                if not is_before:
                    decode(data, kind)
                raise _Interrupted

            monkeypatch.setattr(host, "decode", interrupt)
            with pytest.raises(_Interrupted):
                box.run(ONE)
        assert [box.run(ONE).outputs["output"] for _ in range(5)] == [1] * 5


def run_until_none_is_ready(box: Sandbox) -> None:
    """Use up what the zygote has made, now that it makes no more."""
    for _ in range(10):
        try:
            box.run(ONE, deadline_s=time.monotonic() + 2)
        except DeadlineExceeded:
            return
    raise AssertionError("it makes processes still")


@pytest.mark.timeout(50)
def test_deadlines_cancels_and_close_hold_while_the_zygote_stands_still() -> None:
    with Sandbox(max_workers=3) as box:
        box.run(ONE)
        zygote = host_of(box)._zygote
        os.kill(zygote.pid, signal.SIGSTOP)
        run_until_none_is_ready(box)
        late = [box.submit(ONE, deadline_s=time.monotonic() + 0.3) for _ in range(2)]
        mine = box.submit(ONE, request_id="mine")
        assert all(isinstance(each.exception(20), DeadlineExceeded) for each in late)
        eventually(mine.running)
        assert box.cancel("mine")
        assert isinstance(mine.exception(20), RunCancelled)
        waiting = box.submit(ONE)
        eventually(waiting.running)
        box.close()
        assert isinstance(waiting.exception(20), SandboxBroken)
        assert zygote.returncode is not None


@pytest.mark.timeout(50)
def test_a_zygote_that_stood_still_goes_on() -> None:
    with Sandbox() as box:
        zygote = host_of(box)._zygote
        os.kill(zygote.pid, signal.SIGSTOP)
        run_until_none_is_ready(box)
        futures = [box.submit(ONE) for _ in range(4)]
        os.kill(zygote.pid, signal.SIGCONT)
        assert [each.result(20).outputs["output"] for each in futures] == [1] * 4


def test_a_process_that_closes_its_end_gets_no_more_time_than_its_limit() -> None:
    says_nothing = (
        "import os, socket, stat, time\n"
        "for fd in range(3, 64):\n"
        "    try:\n        if not stat.S_ISSOCK(os.fstat(fd).st_mode): continue\n"
        "    except OSError: continue\n"
        "    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd).send(b'')\n"
        "time.sleep(1000)"
    )
    with Sandbox(limits=Limits(wall_ms=300)) as box:
        with pytest.raises(LimitExceeded) as caught:
            box.execute(says_nothing)
        assert caught.value.limit == "wall_ms"
        box.set_limits(wall_ms=60_000)
        with pytest.raises(DeadlineExceeded):
            box.run(Algorithm("quiet", says_nothing.encode(), None), deadline_s=time.monotonic() + 0.3)


# -- ends -------------------------------------------------------------------------------------------------------------


def run_program(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=100)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_host_that_is_the_first_process_of_a_container_has_no_zombies() -> None:
    program = (
        "import os\nfrom tr_mmap.sandbox import Sandbox, _kernel\n"
        "_kernel.prctl(36, 1)  # a subreaper: what loses its parent becomes its child\n"
        "for _ in range(3):\n"
        "    with Sandbox() as box:\n"
        "        box.run(box.register('kept', 'output = 1', reuse=True))\n"
        "        box.set_limits(wall_ms=4000)\n"
        "        box.execute('output = 1')\n"
        "try:\n    print('left:', os.waitpid(-1, os.WNOHANG))\nexcept ChildProcessError:\n    print('none')"
    )
    assert run_program(program) == "none\n"


def test_one_process_that_does_not_end_keeps_no_other_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox()
    for number in range(3):
        box.run(Algorithm(f"a{number}", b"output = 1", None, is_reused=True))
    the_host = host_of(box)
    kept = [each for all_ in the_host._kept.values() for each in all_]
    assert len(kept) == 3
    close = Process.close

    def close_or_fail(process: Process) -> None:
        close(process)
        if process is not kept[1]:
            raise SandboxBroken("it does not end")

    monkeypatch.setattr(Process, "close", close_or_fail)
    with pytest.raises(SandboxBroken, match="does not end"):
        box.close()
    assert all(each.is_over for each in kept)
    assert the_host._zygote.returncode is not None
    assert not host._hosts or the_host not in host._hosts
    box.close()


def waits_for(path: Path) -> str:
    return f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.01)\noutput = 1"


def test_a_result_is_given_though_a_former_executor_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox(limits=Limits(wall_ms=60_000), allow=Allow(read=(str(tmp_path),))) as box:
        former = box._executor
        future = box.submit(Algorithm("waits", waits_for(tmp_path / "gate").encode(), None))
        eventually(future.running)
        eventually(lambda: bool(former._runs._runs))  # type: ignore[attr-defined]
        box.set_limits(wall_ms=50_000)
        close = former.close

        def fail() -> None:
            close()
            monkeypatch.undo()
            raise SandboxBroken("it does not end")

        monkeypatch.setattr(former, "close", fail)
        (tmp_path / "gate").touch()
        assert future.result(20).outputs == {"output": 1}


def file_of(number: int | None) -> str:
    """What a descriptor of this process is open on; "" if it is closed."""
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:
        return ""


def test_a_fork_has_no_descriptor_of_processes_whose_runs_go_on() -> None:
    with Sandbox(limits=Limits(wall_ms=60_000)) as box:
        box.run(ONE)
        before = set(os.listdir("/proc/self/fd"))
        future = box.submit(Algorithm("sleeps", SLEEPS.encode(), None), request_id="mine")
        eventually(lambda: any(each._cores or each._is_ready for each in list(host_of(box)._made) if not each.is_over))
        (process,) = [each for each in host_of(box)._made if each._is_ready and not each.is_over]
        numbers = {process._pidfd, process._status, process._end.fileno()}
        held = {number: file_of(number) for number in numbers}
        pid = os.fork()
        if not pid:
            os._exit(sum(file_of(number) == file for number, file in held.items()))  # another may have the number
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert before
        assert box.cancel("mine")
        assert isinstance(future.exception(20), RunCancelled)


# -- registered, cancelled --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_queued", [False, True], ids=["goes on", "waits"])
def test_a_run_that_ends_after_its_algorithm_was_unregistered_keeps_nothing(is_queued: bool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    waits = waits_for(gate)
    allow = Allow(read=(str(tmp_path),))
    with Sandbox(max_workers=1, limits=Limits(wall_ms=60_000), allow=allow) as box:
        kept = box.register("kept", waits, reuse=True)
        first = box.submit(box.register("first", waits)) if is_queued else None
        future = box.submit(kept)
        eventually((first or future).running)
        box.unregister("kept")
        gate.touch()
        assert future.result(30).outputs == {"output": 1}
        assert not host_of(box)._kept
        box.register("kept", waits, reuse=True)
        assert box.run("kept").outputs == {"output": 1}
        assert len(host_of(box)._kept) == 1


RAISES = """
import os
output = os.getpid()
if inputs["how"] == "raises":
    raise ValueError(inputs["how"])
if inputs["how"] == "tries":
    open("/etc/shadow")
if inputs["how"] == "fills":
    output = bytearray(1 << 40)
"""


def test_a_kept_process_takes_the_next_run_after_an_exception_and_after_no_other_failure() -> None:
    with Sandbox() as box:
        kept = box.register("kept", RAISES, reuse=True)

        def pid() -> int:
            return int(box.run(kept, {"how": "ends"}).outputs["output"])

        first = pid()
        for _ in range(2):
            with pytest.raises(AlgorithmError, match="ValueError: raises"):
                box.run(kept, {"how": "raises"})
            assert pid() == first
        for how, error in (("tries", NotAllowed), ("fills", LimitExceeded)):
            before = pid()
            with pytest.raises(error):
                box.run(kept, {"how": how})
            assert pid() != before
        assert len(host_of(box)._kept) == 1


def test_an_algorithm_that_takes_the_name_of_another_ends_what_is_kept_of_that() -> None:
    with Sandbox() as box:
        box.run(box.register("b", COUNTS, reuse=True))
        assert box.register("b", COUNTS, reuse=True)  # the same
        assert box.run("b").outputs == {"output": 2}
        box.register("b", "output = 'new'", reuse=True)
        assert not host_of(box)._kept
        assert box.run("b").outputs == {"output": "new"}
        box.unregister("b")
        assert not host_of(box)._kept


def test_a_cancelled_task_cancels_no_other_request_of_its_id() -> None:
    async def main() -> None:
        with Sandbox(max_workers=1, limits=Limits(wall_ms=60_000)) as box:
            first = asyncio.create_task(box.aio.run(Algorithm("sleeps", SLEEPS.encode(), None), request_id="first"))
            while not box._executor._runs._runs:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
            for _ in range(20):
                former = asyncio.create_task(box.aio.run(ONE, request_id="x"))
                while "x" not in box._requests:
                    await asyncio.sleep(0)
                former.cancel()
                await asyncio.sleep(0)
                later = asyncio.create_task(box.aio.run(ONE, request_id="x"))
                with pytest.raises(asyncio.CancelledError):
                    await former
                await asyncio.sleep(0)
                noted = box._requests["x"][1]
                assert noted is not None
                assert not noted.cancelled()
                later.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await later
            await asyncio.to_thread(box.cancel, "first")
            with pytest.raises(RunCancelled):
                await first

    asyncio.run(main())


def test_a_task_whose_request_is_cancelled_gets_the_error_that_says_so_whether_it_waits_or_runs() -> None:
    async def main() -> None:
        with Sandbox(max_workers=1, limits=Limits(wall_ms=60_000)) as box:
            runs = asyncio.create_task(box.aio.run(Algorithm("sleeps", SLEEPS.encode(), None), request_id="runs"))
            while not box._executor._runs._runs:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
            waits = asyncio.create_task(box.aio.run(ONE, request_id="waits"))
            left = asyncio.create_task(box.aio.run(ONE, request_id="left"))
            while "left" not in box._requests:
                await asyncio.sleep(0)
            for name, task in (("waits", waits), ("runs", runs)):
                assert await asyncio.to_thread(box.cancel, name)
                with pytest.raises(RunCancelled, match=name):
                    await task
                assert not task.cancelled()
            assert (await left).outputs == {"output": 1}

    asyncio.run(main())


def test_a_task_that_waits_while_the_sandbox_is_closed_gets_the_error_that_says_so() -> None:
    async def main() -> None:
        box = Sandbox(max_workers=1, limits=Limits(wall_ms=60_000))
        tasks = [asyncio.create_task(box.aio.run(Algorithm("sleeps", SLEEPS.encode(), None))) for _ in range(2)]
        while not box._executor._runs._runs:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
        await asyncio.to_thread(box.close)
        for each in tasks:
            with pytest.raises(SandboxBroken, match="closed"):
                await each

    asyncio.run(main())


def test_a_cancel_is_seen_by_a_run_that_begins_on_a_newer_executor_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits change, and the run begins, at the worst moment: when it can no longer be taken out of the queue."""
    with Sandbox(limits=Limits(wall_ms=60_000)) as box:
        newer = box._make_executor()
        may_begin = threading.Event()
        execute = box._execute

        def begin_late(request: ComputeRequest) -> ComputeResponse:
            assert may_begin.wait(20)
            return execute(request)

        monkeypatch.setattr(box, "_execute", begin_late)
        former = box._executor
        future = box.submit(Algorithm("sleeps", SLEEPS.encode(), None), request_id="mine")

        def cancel_late() -> bool:
            box._executor = newer
            may_begin.set()

            def has_begun() -> bool:
                runs = newer._runs._runs.values()  # type: ignore[attr-defined]
                return any(each._process is not None for each in runs) or future.done()

            eventually(has_begun)
            return False

        monkeypatch.setattr(future, "cancel", cancel_late)
        assert box.cancel("mine")
        assert isinstance(future.exception(20), RunCancelled)
        former.close()
