"""The soak of a gateway: steady requests over several connections, while it kills a contained process now and then.

Every answer must be right, also where the first process was killed and a second one had to compute it. In the end
nothing may have grown, and nothing may be left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import psutil

from bench.load import Load, Measured, request
from tr_mmap.processes.identity import Identity, send_signal, wait_for_ends

CONNECTIONS: Final = 8
RATE: Final = 100.0  # requests a second: about half of what fresh processes reach on two cores
KILL_S: Final = 5.0
LEAST_KILLS: Final = 3  # also in a short run
MOST_ERRORS: Final = 0.001  # of all requests
LEAST_AVAILABLE: Final = 0.999
ROUNDS: Final = 10
START_S: Final = 60.0
END_S: Final = 30.0
MEMORY_SLACK_NBYTES: Final = 16 << 20
DESCRIPTORS_SLACK: Final = 24  # for spare processes, and for those that end just when the sample is taken
COUNT: Final = 16

CONFIG: Final = """
[server]
port = 0
[auth]
key_file = "tr_mmap.key"
requests_per_minute = 0
"""
CODE: Final = "def process(inputs):\n    return {'output': inputs['x'] * 2}\n"
ALGORITHMS: Final = {"kept": {"reuse": True}, "fresh": {}}


class GatewaySoak:
    """One gateway, and what it was asked.

    Args:
        folder: for its files.
        seed: of the random choices.

    Attributes:
        wrong: what was not as it should be.
        found: the measurements of all requests.
        kills: how many processes were killed.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.wrong: list[str] = []
        self.found = Measured()
        self.kills = 0
        self.samples: list[dict[str, int]] = []
        self._is_over = threading.Event()
        path = folder / "tr_mmap.toml"
        path.write_text(CONFIG)
        command = [sys.executable, "-m", "tr_mmap"]
        made = subprocess.run(
            [*command, "token", "--config", path, "--scope", "admin"], capture_output=True, text=True, check=True
        )
        self.token = made.stdout.split()[-1]
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, "serve", "--config", path], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.address = self._wait_until_it_listens()
        for name, more in ALGORITHMS.items():
            status = self.ask("/api/v1/python/algorithms", {"name": name, "code": CODE, **more})
            if status != 201:
                raise RuntimeError(f"{name} could not be registered: {status}")

    def _wait_until_it_listens(self) -> tuple[str, int]:
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s and self.process.poll() is None:
            for line in self.log.read_text().splitlines():
                if line.startswith("serving on http://") and ";" in line:
                    host, _, port = line.removeprefix("serving on http://").partition(";")[0].partition(":")
                    return host, int(port)
            time.sleep(0.05)
        raise RuntimeError(f"the gateway does not start: {self.log.read_text()}")

    def ask(self, path: str, body: Any) -> int:
        """The status of the answer to one request."""
        connection = HTTPConnection(*self.address, timeout=START_S)
        connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {self.token}"})
        with connection.getresponse() as answer:
            answer.read()
        connection.close()
        return answer.status

    # -- requests -----------------------------------------------------------------------------------------------------

    def make(self, number: int) -> bytes:
        """The request with a number. The algorithms take turns, and each request has other inputs."""
        name = list(ALGORITHMS)[number % len(ALGORITHMS)]
        tensor = {"dtype": "float64", "shape": [COUNT], "data": [number + each for each in range(COUNT)]}
        body = json.dumps({"algorithm": name, "inputs": {"x": tensor}}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        return request("/api/v1/python/execute", body, headers)

    def is_right(self, number: int, status: int, body: bytes) -> bool:
        """Whether an answer is right. The load counts an error status; a wrong result ends the soak."""
        if status != 200:
            return False
        if json.loads(body)["result"]["data"] != [2.0 * (number + each) for each in range(COUNT)]:
            self.wrong.append(f"the answer to request {number} is {body[:300]!r}")
            return False
        return True

    def run(self, seconds: float, rate: float = RATE) -> None:
        """Ask for so long."""
        load = Load(self.address, self.make, self.is_right, CONNECTIONS)
        killer = threading.Thread(target=self._kill, args=(min(KILL_S, seconds / (LEAST_KILLS + 1)),))
        try:
            load.run(1.0, rate)  # a warm-up
            self._sample()
            killer.start()
            for _ in range(ROUNDS):
                try:
                    measured = load.run(seconds / ROUNDS, rate)
                except OSError as error:  # it takes no connections
                    self.wrong.append(f"no connection: {error}; the gateway's exit status is {self.process.poll()}")
                    break
                self.found.seconds += measured.seconds
                self.found.latencies_ns += measured.latencies_ns
                self.found.wrong += measured.wrong
                self.found.broken += measured.broken
                self._sample()
                if self.wrong or self.process.poll() is not None:
                    break
        except BaseException:
            print(self.log.read_text()[-4000:])
            raise
        finally:
            self._is_over.set()
            if killer.ident is not None:
                killer.join()
            load.close()

    def _kill(self, every_s: float) -> None:
        while not self._is_over.wait(every_s):
            workers = self.workers()
            if workers:
                try:
                    self.random.choice(workers).send_signal(signal.SIGKILL)
                    self.kills += 1
                except psutil.NoSuchProcess:
                    pass  # it has ended by itself just then

    def workers(self) -> list[psutil.Process]:
        """The contained processes: children of the gateway's children."""
        found = []
        for each in psutil.Process(self.process.pid).children():
            try:
                found += each.children()
            except psutil.NoSuchProcess:
                continue
        return found

    # -- what is left -------------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        process = psutil.Process(self.process.pid)
        self.samples.append(
            {
                "memory_nbytes": process.memory_info().rss,
                "descriptors": process.num_fds(),
                "threads": process.num_threads(),
                "children": len(process.children()),
            }
        )

    def growth(self) -> list[str]:
        """What late samples have more of than early ones."""
        half = max(1, len(self.samples) // 2)
        slack = {"memory_nbytes": MEMORY_SLACK_NBYTES, "descriptors": DESCRIPTORS_SLACK, "threads": 8, "children": 0}
        found = []
        for name, more in slack.items():
            early = max(each[name] for each in self.samples[:half])
            late = min(each[name] for each in self.samples[half:] or self.samples)
            if late > early + more:
                found.append(f"{name}: at most {early} early, at least {late} late")
        return found

    def close(self) -> list[str]:
        """End the gateway as a service manager does. Returns what is left of it."""
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        processes = [each for each in (Identity.of(child.pid) for child in children) if each is not None]
        if (ended := self.process.poll()) is not None:
            return [f"no gateway: its exit status is {ended}: {self.log.read_text()[-4000:]}"]
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return ["the gateway, which did not end at SIGTERM"]
        wait_for_ends(processes, time.monotonic() + END_S)
        alive = [each for each in processes if each.is_alive()]
        for each in alive:
            send_signal(each, signal.SIGKILL)
        left = [f"process {each.pid}" for each in alive]
        return left if status == 0 else [*left, f"the exit status {status}: {self.log.read_text()[-2000:]}"]

    def report(self, left: list[str]) -> bool:
        """Print what came of it; whether it is good."""
        right, wrong, broken = len(self.found.latencies_ns), self.found.wrong, self.found.broken
        total = max(1, right + wrong + broken)
        errors, available = (wrong + broken) / total, right / total
        print(f"{total:,} requests in {self.found.seconds:.0f} s, {self.kills} processes killed")
        print(f"  {right:,} right; errors {100 * errors:.3f} %; availability {100 * available:.3f} %")
        print(f"  first and last sample: {self.samples[0]} {self.samples[-1]}")
        problems = self.wrong + [f"grown: {each}" for each in self.growth()] + [f"left: {each}" for each in left]
        if errors >= MOST_ERRORS:
            problems.append(f"errors: {wrong} answers that are none, {broken} connections that ended")
        if available <= LEAST_AVAILABLE:
            problems.append("availability: too low")
        if self.kills < LEAST_KILLS:
            problems.append(f"only {self.kills} processes were killed")
        if problems:
            lines = [line for line in self.log.read_text().splitlines() if '"status":200' not in line]
            problems += ["the log ends so:", *lines[-10:]]
        print("\n".join(problems) if problems else "nothing wrong, nothing grown, nothing left")
        return not problems


def soak_gateway(seconds: float, seed: int, folder: Path) -> bool:
    """All of it; whether it is good."""
    shm = set(os.listdir("/dev/shm"))
    soak = GatewaySoak(folder, seed)
    try:
        soak.run(seconds)
    finally:
        left = soak.close()
    named = {each for each in set(os.listdir("/dev/shm")) - shm if f"_{soak.process.pid}" in each}
    return soak.report(left + sorted(named))
