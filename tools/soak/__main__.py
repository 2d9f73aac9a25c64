"""Random traffic for as long as you like, with kills and restarts. Checks that every answer is right, and that memory,
descriptors and /dev/shm do not grow.

    python tools/soak --minutes 60

There are three sessions: one that nobody disturbs, one whose worker is killed and whose session is closed at random,
and one over the channel of files. ``--torch`` has tensors of torch on both sides of all of them. There is also a store
of records, whose writers and readers are killed. ``--no-store`` leaves the store out, ``--no-sessions`` the sessions;
``--gateway`` runs a gateway instead, ``--pool`` a pool of workers. Between rounds the program drops all views, tags and
records, and takes a sample. Samples of late rounds must be as low as those of early ones, and in the end nothing may be
left. Prints a report; the exit status is 0 if all is good, otherwise 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402 - the package is beside this directory, installed or not
from frameworks import bytes_of, give, scribble  # noqa: E402
from gateway import soak_gateway  # noqa: E402
from measures import count_fds, files_of, private_nbytes, shared_nbytes, trim  # noqa: E402
from pools import soak_pool  # noqa: E402
from stores import StoreSoak  # noqa: E402

from tr_mmap import PythonSession, RemoteError, ResponseTimeout, SessionNotStarted, WorkerDied, sweep  # noqa: E402

WORKER: Final = HERE / "worker.py"
MAX_NBYTES: Final = 8 << 20
AT_ONCE: Final = 32  # requests of one session in flight
BUDGET_NBYTES: Final = 256 << 20
LONG_MS: Final = 60_000.0
MAX_VIEWS: Final = 30
DTYPES: Final = ("uint8", "int16", "float32", "float64", "int64", "complex64")
# How much more memory a late round may use than an early one: an allocator keeps some, which is no leak.
MEMORY_SLACK_NBYTES: Final = 6 << 20
MEMORY_SLACK_SHARE: Final = 0.05
MAPS_SLACK: Final = 20  # of the allocator, and of threads
STORE_SHARE: Final = 0.3  # of the deeds
STORE_NBYTES: Final = 512 << 20  # more than its files ever take, with what is written while a snapshot lives


@dataclass(frozen=True)
class Sample:
    """What is in use between two rounds."""

    at_s: float
    memory_nbytes: int  # private memory of this process
    worker_nbytes: int  # of the undisturbed worker
    shared_nbytes: int  # files in the workspace
    descriptors: int
    worker_descriptors: int
    threads: int
    maps: int
    store_nbytes: int  # of the store's files; see StoreSoak.nbytes
    store_files: int

    def line(self) -> str:
        mib = [f"{each / 2**20:9.1f}" for each in (self.memory_nbytes, self.worker_nbytes, self.shared_nbytes)]
        counts = f"{self.descriptors:6}{self.worker_descriptors:8}{self.threads:8}{self.maps:6}"
        counts += f"{self.store_nbytes / 2**20:10.1f}{self.store_files:6}"
        return f"{self.at_s:8.0f}" + "".join(mib) + counts


HEADING: Final = "    at s   own MiB worker   shared   fds  worker threads  maps store MiB files"


def count_maps(workspace: Path) -> int:
    """The mappings of this process, without those that pools keep of files that exist, which budgets limit.

    A pool maps a file at most once to read and once to write, always shared; a view of it is a private mapping.
    """
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    kept = {
        (rights, path[0])
        for _, rights, _, _, _, *path in lines
        if rights.endswith("s") and path[0].startswith(f"{workspace}/") and not path[0].endswith(" (deleted)")
    }
    return len(lines) - len(kept)


@dataclass
class Party:
    """One session, with the tags and views that the soak holds of it."""

    name: str
    channel: str
    is_disturbed: bool
    framework: str = "numpy"
    session: PythonSession | None = None
    tags: dict[str, int] = field(default_factory=dict)  # tag to the number of what it holds
    views: list[tuple[Any, int]] = field(default_factory=list)

    def open(self) -> PythonSession:
        if self.session is None:
            self.session = PythonSession(
                WORKER,
                self.name,
                quiet_mode=True,
                channel=self.channel,
                budget_nbytes=BUDGET_NBYTES,
                framework=self.framework,
                args=(self.framework,),
            )
        if not self.session.is_alive():
            self.session.start()
            if not self.session.wait_until_ready(LONG_MS):
                raise RuntimeError("a worker was not ready after a minute")
            self.session.submit("pid").result()  # begins the thread of futures, which has a descriptor of its own
        return self.session


def content(number: int) -> Any:
    """Tensor ``number``: its size, type and bytes follow from the number."""
    own = random.Random(number)
    nbytes = int(2 ** own.uniform(0, np.log2(MAX_NBYTES)))
    dtype = np.dtype(own.choice(DTYPES))
    whole = np.arange(number, number + nbytes // 8 + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = whole.view(np.uint8)[: max(1, nbytes // dtype.itemsize) * dtype.itemsize]
    x = bits.view(dtype)
    return x.reshape(-1, 2) if x.size % 2 == 0 and own.random() < 0.5 else x


class Soak:
    """The traffic and its bookkeeping."""

    def __init__(
        self,
        seed: int,
        workspace: Path,
        *,
        has_sessions: bool = True,
        has_store: bool = True,
        framework: str = "numpy",
    ) -> None:
        self.random = random.Random(seed)
        self.workspace = workspace
        self.parties = [
            Party("steady", "mapped", False, framework),
            Party("disturbed", "mapped", True, framework),
            Party("files", "files", True, framework),
        ][: None if has_sessions else 0]
        self.store = StoreSoak(workspace, seed) if has_store else None
        self.number = 0
        self.nbytes = 0
        self.deeds: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.samples: list[Sample] = []
        self.started = time.monotonic()

    # -- checking -----------------------------------------------------------------------------------------------------

    def new(self) -> tuple[int, Any]:
        self.number += 1
        x = content(self.number)
        self.nbytes += x.nbytes
        return self.number, x

    def check(self, found: Any, number: int, what: str) -> None:
        wanted, found = content(number), bytes_of(found)
        if found.shape != wanted.shape or found.dtype != wanted.dtype or found.tobytes() != wanted.tobytes():
            self.wrong.append(f"{what}: tensor {number} is not what was sent")

    # -- deeds --------------------------------------------------------------------------------------------------------

    def send(self, party: Party) -> None:
        number, x = self.new()
        tag = f"tag{self.random.randrange(8)}"
        session = party.open()
        x, was_sent = give(session, x, party.framework, self.random)
        session.send_tensor(x, tag)
        was_sent()
        party.tags[tag] = number

    def ask(self, party: Party) -> None:
        if not party.tags:
            return self.send(party)
        tag, number = self.random.choice(sorted(party.tags.items()))
        found = party.open().fetch_tensor(f"{self.giving_back(party)} {tag}", LONG_MS)
        self.check(found, number, "ask")
        return self.hold(party, found, number)

    def lend(self, party: Party) -> None:
        number, x = self.new()
        session = party.open()
        x, was_sent = give(session, x, party.framework, self.random)
        found = session.calculate(self.giving_back(party), x, timeout_ms=LONG_MS)
        was_sent()
        self.check(found, number, "lend")
        if self.random.random() < 0.3:
            again = session.calculate(self.giving_back(party), x, timeout_ms=LONG_MS)
            if bytes_of(again).tobytes() != bytes_of(x).tobytes():
                self.wrong.append(f"lend: tensor {number} was sent again, and is not what it was then")
        self.hold(party, found, number)

    def giving_back(self, party: Party) -> str:
        """A command that answers with the tensor that it gets."""
        return self.random.choice(["echo", "loan", "infer"] if party.framework == "torch" else ["echo", "loan"])

    def hold(self, party: Party, found: Any, number: int) -> None:
        if party.framework == "torch" and self.random.random() < 0.3:
            scribble(found)
        elif self.random.random() < 0.3:
            party.views.append((found, number))
            del party.views[:-MAX_VIEWS]

    def look(self, party: Party) -> None:
        for found, number in party.views:
            self.check(found, number, "held view")

    def let_go(self, party: Party) -> None:
        self.random.shuffle(party.views)
        del party.views[len(party.views) // 2 :]

    def keep(self, party: Party) -> None:
        number, x = self.new()
        wanted = str(int(x.view(np.uint8).sum(dtype=np.int64)))
        x, was_sent = give(party.open(), x, party.framework, self.random)
        if party.open().calculate("keep", x, timeout_ms=LONG_MS) != wanted:
            self.wrong.append(f"keep: tensor {number} has another sum in the worker")
        was_sent()

    def drop(self, party: Party) -> None:
        if party.tags:
            tag = self.random.choice(sorted(party.tags))
            party.open().drop_tensor(tag)
            del party.tags[tag]

    def talk(self, party: Party) -> None:
        text = "x" * int(2 ** self.random.uniform(0, 18))
        if party.open().fetch_response({"cmd": "say", "params": text}, LONG_MS) != text:
            self.wrong.append("talk: another text came back")

    def crowd(self, party: Party) -> None:
        """Many requests in flight: each has its own answer, or is cancelled."""
        session = party.open()
        number, x = self.new()
        asked: list[tuple[Any, str | None]] = []
        for place in range(AT_ONCE):
            if place % 8 == 0:
                given, was_sent = give(session, x, party.framework, self.random)
                asked.append((session.submit("echo", given, timeout_ms=LONG_MS), None))
                was_sent()
            else:
                asked.append((session.submit(f"say {number}.{place}", timeout_ms=LONG_MS), f"{number}.{place}"))
        for future, _ in self.random.sample(asked, 3):
            future.cancel()
        for future, text in asked:
            try:
                found = future.result()
            except CancelledError:
                self.errors["CancelledError"] += 1
                continue
            except WorkerDied:
                if not party.is_disturbed:
                    raise
                self.errors["WorkerDied"] += 1
                continue
            if text is None:
                self.check(found, number, "crowd")
            elif found != text:
                self.wrong.append(f"crowd: {found!r} is the answer to {text!r}")

    def fail(self, party: Party) -> None:
        try:
            party.open().fetch_response("fail on purpose", LONG_MS)
            self.wrong.append("fail: it did not")
        except RemoteError as error:
            if error.error_type != "ArithmeticError":
                raise

    def give_up(self, party: Party) -> None:
        try:
            party.open().fetch_response("nap 5", 1)
        except ResponseTimeout:
            self.errors["ResponseTimeout"] += 1

    def kill(self, party: Party) -> None:
        session = party.open()
        pid = int(session.fetch_response("pid", LONG_MS))
        x, _ = give(session, content(self.number), party.framework, self.random)
        timer = threading.Timer(self.random.uniform(0, 0.01), os.kill, (pid, signal.SIGKILL))
        timer.start()
        try:
            while True:
                self.check(session.calculate("echo", x, timeout_ms=LONG_MS), self.number, "kill")
        except WorkerDied:
            self.errors["WorkerDied"] += 1
        finally:
            timer.join()

    def kill_crowd(self, party: Party) -> None:
        """Kill the worker while many requests are in flight."""
        pid = int(party.open().fetch_response("pid", LONG_MS))
        timer = threading.Timer(self.random.uniform(0, 0.01), os.kill, (pid, signal.SIGKILL))
        timer.start()
        try:
            for _ in range(100):
                self.crowd(party)
        except (WorkerDied, SessionNotStarted):
            self.errors["WorkerDied"] += 1
        finally:
            timer.join()

    def terminate(self, party: Party) -> None:
        party.open().terminate()

    def close(self, party: Party) -> None:
        session = party.open()
        party.session = None
        party.tags.clear()
        session.please_exit()

    def orphan(self, party: Party) -> None:
        """Kill a controller as soon as its session is started: its worker must end, and ``sweep`` remove the files."""
        pid = os.fork()
        if pid == 0:
            try:
                PythonSession(WORKER, f"orphan{self.number}", quiet_mode=True, args=(party.framework,)).start()
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        sweep()

    # -- rounds -------------------------------------------------------------------------------------------------------

    def deed(self) -> None:
        if self.store is not None and (not self.parties or self.random.random() < STORE_SHARE):
            return self.store.deed()
        party = self.random.choices(self.parties, [10, 10, 1])[0]
        usual: list[Callable[[Party], None]] = [self.send, self.ask, self.lend, self.keep, self.talk, self.drop]
        rare = [self.look, self.let_go, self.fail, self.give_up, self.crowd]
        faults = [self.kill, self.kill_crowd, self.terminate, self.close, self.orphan] if party.is_disturbed else []
        kind = self.random.choices([usual, rare, faults or usual], [89, 8, 3])[0]
        chosen = self.random.choice(kind)
        self.deeds[chosen.__name__] += 1
        return chosen(party)

    def quiet(self) -> None:
        """Take a sample, after everything that was kept is dropped: only then can samples be compared."""
        for party in self.parties:
            session = party.open()
            party.views.clear()
            for tag in party.tags:
                session.drop_tensor(tag)
            party.tags.clear()
            session.fetch_response("forget", LONG_MS)
        if self.store is not None:
            self.store.quiet()
            self.wrong += self.store.wrong
        gc.collect()
        trim()
        for party in self.parties:
            party.open().calculate("echo", np.zeros(1), timeout_ms=LONG_MS)
        sweep()
        worker = int(self.parties[0].open().fetch_response("pid", LONG_MS)) if self.parties else os.getpid()
        self.samples.append(
            Sample(
                at_s=time.monotonic() - self.started,
                memory_nbytes=private_nbytes(os.getpid()),
                worker_nbytes=private_nbytes(worker),
                shared_nbytes=shared_nbytes(self.workspace),
                descriptors=count_fds(os.getpid()),
                worker_descriptors=count_fds(worker),
                threads=threading.active_count(),
                maps=count_maps(self.workspace),
                store_nbytes=0 if self.store is None else self.store.nbytes(),
                store_files=0 if self.store is None else self.store.count_files(),
            )
        )

    def run(self, seconds: float) -> None:
        round_s = min(max(seconds / 12, 0.5), 30.0)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.wrong:
            round_end = min(time.monotonic() + round_s, end)
            while time.monotonic() < round_end:
                self.deed()
            self.quiet()
        for party in self.parties:
            if party.session is not None:
                party.session.please_exit()
                party.session = None
        if self.store is not None:
            self.deeds += self.store.deeds
            self.store.close()

    def growth(self) -> list[str]:
        """What late samples have more of than early ones. The first sample belongs to the warm-up and is left out."""
        samples = self.samples[1:] if len(self.samples) > 3 else self.samples
        half = max(1, len(samples) // 2)
        found = []
        for name in (
            *("memory_nbytes", "worker_nbytes", "descriptors", "worker_descriptors", "threads"),
            *("maps", "store_nbytes", "store_files"),
        ):
            early = max(getattr(each, name) for each in samples[:half])
            late = min(getattr(each, name) for each in samples[half:] or samples)
            slack = MEMORY_SLACK_NBYTES + early * MEMORY_SLACK_SHARE if name.endswith("nbytes") else 0
            if name == "maps":
                slack = MAPS_SLACK
            if late > early + slack:
                found.append(f"{name}: at most {early} early, at least {late} late")
        limit = 2 * len(self.parties) * BUDGET_NBYTES + STORE_NBYTES
        if (most := max(each.shared_nbytes for each in samples)) > limit:
            found.append(f"shared_nbytes: {most}, above what budgets allow")
        return found


def report(soak: Soak, seconds: float, left: list[str]) -> bool:
    """Print the report; return whether all is good."""
    step = max(1, len(soak.samples) // 20)
    print(HEADING)
    for sample in [*soak.samples[:-1:step], soak.samples[-1]]:
        print(sample.line())
    problems = soak.wrong + [f"grown: {each}" for each in soak.growth()] + [f"left: {each}" for each in left]
    print(f"{sum(soak.deeds.values()):,} deeds, {soak.nbytes / 2**30:.1f} GiB sent, in {seconds:.0f} s")
    print("  " + ", ".join(f"{name} {count}" for name, count in soak.deeds.most_common()))
    print("  as expected: " + (", ".join(f"{name} {count}" for name, count in soak.errors.items()) or "no errors"))
    print("\n".join(problems) if problems else "nothing wrong, nothing grown, nothing left")
    return not problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=1.0, help="how long (1)")
    length.add_argument("--seconds", type=float, help="how long, in seconds")
    parser.add_argument("--seed", type=int, default=None, help="of the random choices; another one each time")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--no-store", action="store_true", help="sessions only")
    parts.add_argument("--no-sessions", action="store_true", help="the store only")
    parts.add_argument("--gateway", action="store_true", help="a gateway only")
    parts.add_argument("--pool", action="store_true", help="a pool only")
    parser.add_argument("--torch", action="store_true", help="tensors of torch on both sides, not numpy's")
    options = parser.parse_args()
    framework = "torch" if options.torch else "numpy"
    seconds = options.seconds if options.seconds is not None else options.minutes * 60
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="tr_soak_", dir=parent) as directory:
        os.environ["TR_WORKSPACE"] = directory
        if options.gateway:
            return 0 if soak_gateway(seconds, seed, Path(directory)) else 1
        if options.pool:
            return 0 if soak_pool(seconds, seed, Path(directory), framework) else 1
        workspace = Path(directory)
        fds, threads = count_fds(os.getpid()), threading.active_count()
        parts_had = {"has_sessions": not options.no_sessions, "has_store": not options.no_store}
        soak = Soak(seed, workspace, **parts_had, framework=framework)
        soak.run(seconds)
        gc.collect()
        sweep()
        left = [str(path.relative_to(workspace)) for path, _ in files_of(workspace)]
        left += [name for name in os.listdir(parent or directory) if name.startswith(f"sem.tr_{os.getpid()}_")]
        if (more := count_fds(os.getpid()) - fds) > 0:
            left.append(f"{more} descriptors")
        if (more := threading.active_count() - threads) > 0:
            left.append(f"{more} threads")
        is_good = report(soak, time.monotonic() - soak.started, left)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
