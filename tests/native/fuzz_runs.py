"""Runs the rounds of a fuzzer in processes of their own: ``fuzz_….py compiled [--seconds N] [--seed S] [--rounds R]``.

A round is a function of a seed. A process that crashes or hangs in one names the round's seed, and the run fails with
what has to be typed to see it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

__all__ = ["run"]

ROUNDS = 200  # of one process, so that a leak or a state of the process does not hide what comes later
HANG_S = 300.0  # of a round, which takes a second or less on a machine with nothing else to do


def _child(play: Callable[[random.Random], None], first: int, rounds: int, until_s: float) -> None:
    faulthandler.enable()
    for seed in range(first, first + rounds):
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        sys.stdout.write(f"{seed}\n")
        sys.stdout.flush()
        play(random.Random(seed))
        if time.monotonic() >= until_s:
            break
    faulthandler.cancel_dump_traceback_later()


def run(play: Callable[[random.Random], None]) -> int:
    """What ``main`` returns: 0 if nothing was found in the time."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("implementation", choices=["compiled"])
    parser.add_argument("--seconds", type=float, default=15.0, help="how long; one round is played at least")
    parser.add_argument("--seed", type=int, help="of the first round; else another one each time")
    parser.add_argument("--rounds", type=int, default=10**9, help="how many at most")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    if options.child is not None:
        _child(play, seed, options.rounds, options.child)
        return 0
    left, until_s = options.rounds, time.monotonic() + options.seconds
    played = 0
    while left > 0 and (not played or time.monotonic() < until_s):
        rounds = min(left, ROUNDS)
        command = [
            sys.executable,
            "-P",
            os.path.abspath(sys.argv[0]),
            "compiled",
            "--seed",
            str(seed),
            "--rounds",
            str(rounds),
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
        with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory() as place:
            begun = subprocess.run(
                [*command, "--child", str(until_s)],
                env=environment, cwd=place, stdout=subprocess.PIPE, stderr=errors, text=True, check=False,
            )  # fmt: skip
            errors.seek(0)
            said = errors.read()
        seeds = begun.stdout.split()
        if begun.returncode or not seeds:
            again = f"{os.path.basename(sys.argv[0])} compiled --rounds 1 --seed {seeds[-1] if seeds else seed}"
            print(said[-20_000:], f"The process ended with {begun.returncode}; once more: python {again}", sep="\n")
            return 1
        if said:
            print(said[-20_000:])
        played, left, seed = played + len(seeds), left - rounds, seed + rounds
    print(f"{played} rounds from seed {seed - played if options.seed is None else options.seed}: nothing found")
    return 0
