"""Kills controllers and workers with SIGKILL while tensors flow, and counts what came of it.

    python tests/crash/harness.py --kills 2000
    python tests/crash/harness.py --kills 500 --torch    # tensors of torch on both sides, not numpy's

A *slot* is a controller, its worker and whoever kills them; several run side by side. The victims say on a board in
shared memory when they are in the middle of a publish; the killer reads it when the victim is dead. Most kills are
aimed: the victim is stopped (SIGSTOP) inside a publish first. The others come at any moment, also during a start.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from content import BOARD_VARIABLE, FRAMEWORK_VARIABLE, Board, Inside, Word, fault_of, flowing, framework  # noqa: E402
from report import Report  # noqa: E402
from support import open_files, processes_of  # noqa: E402

from tr_mmap import PythonSession, ResponseTimeout, WorkerDied, sweep  # noqa: E402

WORKER: Final = HERE / "flow_worker.py"
HANG_S: Final = 30.0  # nothing here takes a second, but the machine may be busy
MOST_HANGS: Final = 3  # of one slot: then something is wrong with all, and each costs HANG_S
SESSION_ID: Final = "kills"
AT_ONCE: Final = 32  # requests in flight together, in one turn of eight
FLOWING, DIED = b"f", b"d"  # what a controller tells its killer


# -- the controller --------------------------------------------------------------------------------------------------


def controller(board: Board, tell: int, first: int) -> None:
    """Send, ask, check, until killed; start the worker again whenever it dies."""
    session = PythonSession(WORKER, SESSION_ID, quiet_mode=True, framework=framework())
    n, kept, is_first = first, first, True
    while True:
        try:
            session.start()
            run = session._dispatcher.resources.worker  # type: ignore[union-attr]
            board.words[Word.WORKER_PID] = run.process.pid  # type: ignore[union-attr]
            if not session.wait_until_ready(HANG_S * 1000):
                raise ResponseTimeout("the worker was never ready", timeout_ms=HANG_S * 1000, command="start")
            if is_first:
                session.send_tensor(flowing(kept), "kept")
                session.send_tensor(flowing(n), "flow")
                is_first = False
            else:
                _turn(board, session, f"turn kept {kept}", kept)
                board.add(Word.KEPT)
            since = 0
            while True:
                n += 1
                since += 1
                if n % 16 == 0:
                    _lend(session, n)
                elif n % 4:
                    session.send_tensor(flowing(n), "flow")
                if n % 4:
                    _turn(board, session, f"turn flow {n}", n)
                else:
                    answer = session.calculate({"cmd": "turn", "params": n}, flowing(n), timeout_ms=HANG_S * 1000)
                    _check(board, answer, n)
                if n % 8 == 5:
                    _turn_at_once(board, session, n)
                if since == 3:
                    os.write(tell, FLOWING)
        except WorkerDied:
            board.words[Word.WORKER_PID] = 0
            board.add(Word.DIED)
            os.write(tell, DIED)


def _lend(session: PythonSession, n: int) -> None:
    """Send a loan. A tensor of torch may be stored into then: that stays in this process."""
    loan = session.empty(flowing(n).shape, "uint64")
    loan[...] = flowing(n)
    session.send_tensor(loan, "flow")
    if framework() == "torch":
        loan.fill_(0)


def _turn(board: Board, session: PythonSession, message: str, n: int) -> None:
    _check(board, session.fetch_tensor(message, HANG_S * 1000), n)


def _turn_at_once(board: Board, session: PythonSession, n: int) -> None:
    """Have many requests in flight: each gets its own answer, or WorkerDied like all that have none yet."""
    death: WorkerDied | None = None
    futures: list[tuple[Future[Any], str]] = []
    try:
        for number in range(n, n + AT_ONCE):
            if number % 8:
                futures.append((session.submit(f"count {number}", timeout_ms=HANG_S * 1000), str(-number)))
            else:
                flow = {"cmd": "turn", "params": n}
                futures.append((session.submit(flow, flowing(n), timeout_ms=HANG_S * 1000), ""))
    except WorkerDied as error:
        death = error
    for future, wanted in futures:
        try:
            answer = future.result(HANG_S)
        except WorkerDied as error:
            death = error
            continue
        if not wanted:
            _check(board, answer, n)
        elif answer != wanted:
            board.problem(Word.WRONG_HERE, f"{answer!r} is the answer to {wanted}")
        board.add(Word.AT_ONCE)
    if death is not None:
        raise death


def _check(board: Board, answer: object, n: int) -> None:
    if fault := fault_of(answer, n, is_answer=True):  # type: ignore[arg-type]
        board.problem(Word.WRONG_HERE, fault)
    board.add(Word.DELIVERED_HERE)


# -- the killer ------------------------------------------------------------------------------------------------------


class Slot:
    """One controller after another, each with one worker after another, and their killer. Single-threaded: it forks."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.workspace = directory / "workspace"
        self.workspace.mkdir(0o700)
        os.environ["TR_WORKSPACE"] = str(self.workspace)
        os.environ[BOARD_VARIABLE] = str(directory / "board")
        self.board = Board(os.environ[BOARD_VARIABLE])
        self.report = Report()
        self.ear, self.mouth = os.pipe()
        os.set_blocking(self.ear, False)
        self.number = 0
        self.pids = {os.getpid()}
        self.controller = 0

    def run(self, kills: int) -> Report:
        started = time.monotonic()
        for _ in range(kills):
            if len(self.report.hangs) == MOST_HANGS:
                break
            if not self.controller:
                self._fork()
            when = self.random.choices(["aimed", "random", "start"], [70, 20, 10])[0]
            if when == "start":
                time.sleep(self.random.uniform(0, 0.3))  # the moment of a kill is what is random here
            elif not self._hear(FLOWING):
                continue  # counted as a hang
            self._kill(when, self.random.choices(["worker", "controller", "both"], [48, 44, 8])[0])
        self._end()
        self.report.seconds = time.monotonic() - started
        return self.report

    def _fork(self) -> None:
        self.number += 1
        self.board.words[Word.WORKER_PID] = 0  # the last one's: it may be a zombie for a while
        self.controller = os.fork()
        if self.controller == 0:
            code = 1
            try:
                os.close(self.ear)
                faulthandler.register(signal.SIGUSR1, open(self.workspace.parent / "stacks", "a"))  # noqa: SIM115
                self.board.mark_publishes(Word.CONTROLLER_INSIDE)
                controller(self.board, self.mouth, self.number * 10_000_000)
            except BaseException as error:
                self.board.problem(Word.STRANGE, f"{type(error).__name__}: {error}")
            finally:
                os._exit(code)
        self.pids.add(self.controller)

    def _kill(self, when: str, victim: str) -> None:
        words = self.board.words
        is_worker = victim == "worker" or (victim == "both" and self.random.random() < 0.5)
        worker = _open_process(words[Word.WORKER_PID])
        if worker < 0 and is_worker:
            victim, is_worker = "controller", False  # it is not there yet
        inside = Word.WORKER_INSIDE if is_worker else Word.CONTROLLER_INSIDE
        self._drain()
        if when == "aimed":
            self._stop_inside(worker if is_worker else -1, words, inside)
        elif when == "random":
            time.sleep(self.random.uniform(0, 0.02))
        killed_at = time.monotonic()
        first, second = (worker, self._signal_controller) if is_worker else (self._signal_controller, worker)
        for each in (first, second) if victim == "both" else (first,):
            if callable(each):
                each()
            elif each >= 0:
                _signal(each)
        if is_worker:
            _await_end(worker)
        else:
            os.waitpid(self.controller, 0)
        self.report.kills += 1
        self._note("moments", f"{when} {Inside(words[inside]).name}")
        self._note("victims", "controllers" if victim == "controller" else "workers" if victim == "worker" else "both")
        words[inside] = Inside.ELSEWHERE
        if victim == "worker":
            self.report.workers_killed_alone += 1
            words[Word.WORKER_INSIDE] = Inside.ELSEWHERE
            if self._hear(DIED):
                self.report.worker_died_ms.append((time.monotonic() - killed_at) * 1000)
        else:
            if victim == "both" and is_worker:
                os.waitpid(self.controller, 0)
            self.controller = 0
            words[Word.CONTROLLER_INSIDE] = Inside.ELSEWHERE
            self._await_workers(worker, killed_at, is_alone=victim == "controller")
            words[Word.WORKER_INSIDE] = Inside.ELSEWHERE
        if worker >= 0:
            os.close(worker)

    def _stop_inside(self, worker: int, words: memoryview, inside: Word) -> None:
        """Stop the victim anywhere inside a publish; the kill then finds it there.

        A publish takes 40 us, and on a busy machine a killer is often too late. What a stopped process has done to
        shared memory is what it has done when it is killed.
        """
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            if words[inside] != Inside.PUBLISH:
                continue
            _spin(self.random.uniform(0, 25e-6))
            if worker >= 0:
                _signal(worker, signal.SIGSTOP)
                _await_stop(words[Word.WORKER_PID])
            else:
                os.kill(self.controller, signal.SIGSTOP)
                os.waitpid(self.controller, os.WUNTRACED)
            if words[inside] == Inside.PUBLISH:
                return
            if worker >= 0:
                _signal(worker, signal.SIGCONT)
            else:
                os.kill(self.controller, signal.SIGCONT)

    def _signal_controller(self) -> None:
        os.kill(self.controller, signal.SIGKILL)  # our child, not reaped: the number is its own

    def _await_workers(self, worker: int, killed_at: float, *, is_alone: bool) -> None:
        """The controller is dead: whatever worked for it must end."""
        if is_alone:
            self.report.controllers_killed_alone += 1
        if worker >= 0 and not _await_end(worker):
            self._hang("a worker outlives its controller")
        elif is_alone:
            self.report.exit_ms.append((time.monotonic() - killed_at) * 1000)
        if worker >= 0 and self.random.random() < 0.8:
            return
        for process in processes_of(self.workspace):  # a worker that the controller had no time to tell of
            if process.pid not in self.pids and not _await_end(pidfd := _open_process(process.pid)):
                self._hang(f"process {process.pid} outlives its controller")
            elif process.pid not in self.pids and pidfd >= 0:
                os.close(pidfd)

    def _hear(self, wanted: bytes) -> bool:
        """Wait until the controller says that; False, and a hang, if it never does."""
        deadline = time.monotonic() + HANG_S
        poller = select.poll()
        poller.register(self.ear, select.POLLIN)
        while (remaining := deadline - time.monotonic()) > 0:
            if poller.poll(remaining * 1000) and wanted in os.read(self.ear, 1):
                return True
        self._hang(f"the controller never said {wanted.decode()!r}")
        return False

    def _drain(self) -> None:
        while select.select([self.ear], [], [], 0)[0]:
            os.read(self.ear, 4096)

    def _hang(self, what: str) -> None:
        if self.controller:
            os.kill(self.controller, signal.SIGUSR1)
            time.sleep(0.2)
        stacks = self.workspace.parent / "stacks"
        self.report.hangs.append(what + "\n" + (stacks.read_text()[-3000:] if stacks.exists() else ""))
        if self.controller:  # go on with another
            os.kill(self.controller, signal.SIGKILL)
            os.waitpid(self.controller, 0)
            self.controller = 0

    def _note(self, name: str, key: str) -> None:
        counts = getattr(self.report, name)
        counts[key] = counts.get(key, 0) + 1

    def _end(self) -> None:
        if self.controller:
            worker = _open_process(self.board.words[Word.WORKER_PID])
            self._signal_controller()
            os.waitpid(self.controller, 0)
            if worker >= 0:
                _await_end(worker)
                os.close(worker)
        deadline = time.monotonic() + HANG_S
        looks = 0  # several, for a process in the middle of execve(2) shows no environment
        while looks < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
            looks += 1
            for process in processes_of(self.workspace):
                looks = 0
                pidfd = _open_process(process.pid)
                _await_end(pidfd)
                if pidfd >= 0:
                    os.close(pidfd)
        sweep(str(self.workspace))
        left = [f"process {process.pid}" for process in processes_of(self.workspace)]
        left += [str(path.relative_to(self.workspace)) for path in self.workspace.rglob("*")]
        left += [
            name
            for name in os.listdir("/dev/shm")
            if (match := re.match(r"sem\.tr_(\d+)_", name)) is not None and int(match[1]) in self.pids
        ]
        self.report.left = left
        self.report.counts = {word.name: self.board.words[word] for word in Word if word >= Word.DELIVERED_HERE}
        self.report.problems = self.board.problems()
        os.close(self.ear)
        os.close(self.mouth)
        self.board.close()


def _open_process(pid: int) -> int:
    """A pidfd, -1 if there is no such process."""
    if not pid:
        return -1
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _signal(pidfd: int, number: int = signal.SIGKILL) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass


def _await_stop(pid: int) -> None:
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "R":
                return  # stopped; or it slept, and will not go on
        except OSError:
            return


def _await_end(pidfd: int) -> bool:
    return pidfd < 0 or bool(select.select([pidfd], [], [], HANG_S)[0])


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


# -- slots side by side ----------------------------------------------------------------------------------------------


def run_slot(kills: int, seed: int) -> Report:
    """One slot, in this process."""
    if framework() == "torch":
        import torch

        torch.set_num_threads(1)  # controllers are forked, and torch's threads are not
    before = open_files()
    directory = Path(tempfile.mkdtemp(prefix=f"tr_kills_{os.getpid()}_", dir="/dev/shm"))
    try:
        report = Slot(directory, seed).run(kills)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if (after := open_files()) != before:
        report.left.append(f"descriptors: {dict(after - before)}, and closed: {dict(before - after)}")
    return report


def run(kills: int, jobs: int, seed: int | None = None, framework: str = "numpy") -> Report:
    """Several slots, each in a process of its own."""
    seed = random.SystemRandom().randrange(10**9) if seed is None else seed
    shares = [kills // jobs + (index < kills % jobs) for index in range(jobs)]
    running = [
        subprocess.Popen(
            [sys.executable, __file__, "--kills", str(share), "--seed", str(seed + index), "--as-slot"],
            env={**os.environ, FRAMEWORK_VARIABLE: framework},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index, share in enumerate(shares)
    ]
    report = Report()
    for process in running:
        output, _ = process.communicate()
        if process.returncode:
            report.hangs.append(f"a slot has ended with status {process.returncode}")
        else:
            report.add(Report(**json.loads(output)))
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many in all (100)")
    parser.add_argument("--jobs", type=int, default=2, help="slots side by side (2)")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments; another one each time")
    parser.add_argument("--torch", action="store_true", help="tensors of torch on both sides, not numpy's")
    parser.add_argument("--as-slot", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch:
        os.environ[FRAMEWORK_VARIABLE] = "torch"
    if options.as_slot:
        print(json.dumps(asdict(run_slot(options.kills, options.seed))))
        return 0
    report = run(options.kills, options.jobs, options.seed, framework())
    print(report.to_text())
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
