"""The soak of a pool: requests, maps and broadcasts, while workers are killed, come and go, and requests are cancelled.

Every result must be right, and only a request whose worker was killed may have none. Between rounds the pool has two
workers and nothing to do, and the program drops all results: then nothing may have grown. In the end nothing may be
left.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from frameworks import tensor_of
from measures import count_fds, files_of, private_nbytes, shared_nbytes, trim

from tr_mmap import SessionPool, WorkerDied

WORKER: Final = Path(__file__).resolve().parent / "worker.py"
ROUNDS: Final = 20
WARM_S: Final = 0.1  # the share of the time before the first sample counts
MAX_NBYTES: Final = 2 << 20
MOST_VIEWS: Final = 30
HANG_MS: Final = 60_000.0
SLACK: Final = {
    "memory_nbytes": 8 << 20,
    "shared_nbytes": 128 << 20,  # free segments of all sizes, and views: the next round uses them again
    "descriptors": 4,
    "threads": 1,
    "processes": 0,
}


class PoolSoak:
    """One pool, and what was asked of it.

    Args:
        workspace: where its sessions are.
        seed: of the random choices.
        framework: of the tensors on both sides.

    Attributes:
        wrong: what was not as it should be.
        deeds, errors: counts.
        samples: taken between rounds.
    """

    def __init__(self, workspace: Path, seed: int, framework: str = "numpy") -> None:
        self.workspace, self.framework = workspace, framework
        self.random = random.Random(seed)
        self.wrong: list[str] = []
        self.deeds: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.samples: list[dict[str, int]] = []
        self.nbytes = 0
        self.number = 0
        self.views: list[tuple[Any, int]] = []
        options = {"framework": framework, "args": (framework,)}
        self.pool = SessionPool(WORKER, 2, quiet_mode=True, timeout_ms=HANG_MS, **options)

    def run(self, seconds: float) -> None:
        """Ask for so long."""
        end_s = time.monotonic() + seconds
        with self.pool:
            for number in range(ROUNDS):
                until_s = end_s - seconds * (ROUNDS - 1 - number) / ROUNDS
                while True:
                    self.act()
                    if time.monotonic() >= until_s or self.wrong:
                        break
                self.sample()
                if self.wrong:
                    break

    def act(self) -> None:
        """One deed, chosen at random."""
        deeds = {"requests": 10, "map": 6, "kill": 3, "resize": 2, "broadcast": 1}
        name = self.random.choices(list(deeds), list(deeds.values()))[0]
        self.deeds[name] += 1
        getattr(self, name)()

    # -- deeds --------------------------------------------------------------------------------------------------------

    def array(self) -> tuple[int, Any]:
        """A new tensor, all of whose elements are its number."""
        self.number += 1
        count = int(2 ** self.random.uniform(0, np.log2(MAX_NBYTES // 8)))
        self.nbytes += count * 8
        return self.number, tensor_of(np.full(count, float(self.number)), self.framework)

    def check(self, what: str, result: Any, number: int) -> None:
        """Whether a result is the array with a number; some are kept for a while."""
        if not (result == float(number)).all():
            self.wrong.append(f"{what}: the result of {number} has {result[:3]}")
        if self.random.random() < 0.1:
            self.views.append((result, number))
            if len(self.views) > MOST_VIEWS:
                view, number = self.views.pop(self.random.randrange(len(self.views)))
                if not (view == float(number)).all():
                    self.wrong.append(f"a result of {number} that was kept has {view[:3]}")

    def requests(self) -> None:
        """Some at once, of which some are cancelled, and one worker may be killed in the middle."""
        sent = []
        is_killing = self.random.random() < 0.4
        for _ in range(self.random.randrange(5, 40)):
            number, array = self.array()
            sent.append((number, self.pool.submit(self.random.choice(("echo", "loan")), array)))
        if is_killing:
            self.kill()
        is_cancelling = self.random.random() < 0.3
        has_forced = False
        for _, future in sent if is_cancelling else ():
            if self.random.random() < 0.3:
                is_forced = not has_forced and self.random.random() < 0.1
                has_forced |= is_forced
                future.cancel(kill_running=is_forced)
        for number, future in sent:
            try:
                self.check("a request", future.result(HANG_MS / 1000), number)
            except (WorkerDied, CancelledError) as error:
                self.errors[type(error).__name__] += 1
                if isinstance(error, CancelledError) and not is_cancelling:
                    self.wrong.append(f"request {number} was cancelled by nobody")
                if isinstance(error, WorkerDied) and not (is_killing or has_forced or self.errors["kills"]):
                    self.wrong.append(f"request {number}: {error}")

    def map(self) -> None:
        """A map of small or large items, which may be closed before its end."""
        count, is_small = self.random.randrange(1, 300), self.random.random() < 0.5
        first = self.number + 1
        self.number += count
        nbytes = 64 if is_small else self.random.randrange(1 << 10, 1 << 19)
        arrays = (np.full(nbytes // 8, float(first + each)) for each in range(count if is_small else count // 10 + 1))
        items = (tensor_of(array, self.framework) for array in arrays)
        with self.pool.map("echo", items) as results:
            try:
                for number, result in enumerate(results, first):
                    self.check("a map", result, number)
                    if self.random.random() < 0.01:
                        self.deeds["maps closed"] += 1
                        break
            except WorkerDied as error:
                self.errors[type(error).__name__] += 1

    def kill(self) -> None:
        """Kill a worker."""
        pids = [each.pid for each in self.pool.stats().workers if each.pid and each.state != "retiring"]
        if pids:
            try:
                os.kill(self.random.choice(pids), signal.SIGKILL)
                self.errors["kills"] += 1
            except ProcessLookupError:
                pass  # it has ended just then

    def resize(self) -> None:
        """Have another number of workers."""
        self.pool.resize(self.random.randrange(1, 4))

    def broadcast(self) -> None:
        """A tensor for all, used and dropped."""
        number, array = self.array()
        self.pool.broadcast(array, "shared")
        for _ in range(4):
            try:
                self.check("a broadcast", self.pool.submit("echo shared").result(HANG_MS / 1000), number)
            except WorkerDied as error:
                self.errors[type(error).__name__] += 1
        self.pool.drop_tensor("shared")

    # -- what is left -------------------------------------------------------------------------------------------------

    def sample(self) -> None:
        """What is in use when nothing is to be done."""
        self.views.clear()
        self.pool.resize(2)
        end_s = time.monotonic() + HANG_MS / 1000
        while time.monotonic() < end_s:
            if [each.state for each in self.pool.stats().workers] == ["ready", "ready"]:
                break
            time.sleep(0.01)
        else:
            self.wrong.append(f"no two workers after a minute: {self.pool.stats()}")
        process = psutil.Process()
        while len(process.children()) > 2 and time.monotonic() < end_s:
            time.sleep(0.01)  # one that has been killed is cleared away
        gc.collect()
        trim()
        self.samples.append(
            {
                "memory_nbytes": private_nbytes(os.getpid()),
                "shared_nbytes": shared_nbytes(self.workspace),
                "descriptors": count_fds(os.getpid()),
                "threads": process.num_threads(),
                "processes": len(process.children()),
            }
        )

    def growth(self) -> list[str]:
        """What late samples have more of than early ones. The first ones belong to the warm-up."""
        samples = self.samples[int(len(self.samples) * WARM_S) :]
        half = max(1, len(samples) // 2)
        found = []
        for name, slack in SLACK.items():
            early = max(each[name] for each in samples[:half])
            late = min(each[name] for each in samples[half:] or samples)
            if late > early + slack:
                found.append(f"{name}: at most {early} early, at least {late} late")
        return found

    def report(self, seconds: float, left: list[str]) -> bool:
        """Print what came of it; whether it is good."""
        for sample in self.samples:
            print("  " + ", ".join(f"{name} {value:,}" for name, value in sample.items()))
        stats = self.pool.stats()
        print(f"{stats.done:,} requests done, {self.nbytes / 2**30:.1f} GiB sent, in {seconds:.0f} s")
        print("  " + ", ".join(f"{name} {count}" for name, count in self.deeds.most_common()))
        print(f"  workers started {stats.started}, died {stats.died}; requests failed {stats.failed}")
        print("  as expected: " + (", ".join(f"{name} {count}" for name, count in self.errors.items()) or "no errors"))
        problems = self.wrong + [f"grown: {each}" for each in self.growth()] + [f"left: {each}" for each in left]
        print("\n".join(problems) if problems else "nothing wrong, nothing grown, nothing left")
        return not problems


def soak_pool(seconds: float, seed: int, workspace: Path, framework: str) -> bool:
    """All of it; whether it is good."""
    fds, threads = count_fds(os.getpid()), threading.active_count()
    began_s = time.monotonic()
    soak = PoolSoak(workspace, seed, framework)
    soak.run(seconds)
    gc.collect()
    left = [str(path.relative_to(workspace)) for path, _ in files_of(workspace) if path.name != "python_session"]
    left += [f"process {each.pid}" for each in psutil.Process().children()]
    if (more := count_fds(os.getpid()) - fds) > 0:
        left.append(f"{more} descriptors")
    if (more := threading.active_count() - threads) > 0:
        left.append(f"{more} threads")
    return soak.report(time.monotonic() - began_s, left)
