"""Replays what a legacy peer once wrote, byte by byte. The standard library only, none of our code.

As a worker: SESSION_ID, with TR_WORKSPACE. As a controller: DIRECTORY WORKER_COMMAND... REPLAY is the path of a JSON
list of steps; texts in it are Latin-1, a character for a byte:

    ["write", NAME, TEXT]     writes the file in place
    ["put", NAME, TEXT]       puts it there by rename
    ["remove", NAME]
    ["there", NAME]           waits until there is such a file
    ["gone", NAME]            waits until there is none
    ["reads", NAME, TEXT]     the file has exactly this text
    ["begins", NAME, TEXT]    the file begins with this text
    ["status", TEXT]          waits until the status begins with this text

A step that is not true ends the program with a message.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

POLL_S = 0.002
BOUND_S = 50.0


class Replay:
    def __init__(self, directory):
        self.directory = directory
        self.worker = None

    def path(self, name):
        return os.path.join(self.directory, name)

    def read(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def wait(self, what, is_so):
        until_s = time.monotonic() + BOUND_S
        while not is_so():
            if time.monotonic() > until_s or (self.worker is not None and self.worker.poll() is not None):
                raise SystemExit(f"in vain: {what}; there are {sorted(os.listdir(self.directory))}")
            time.sleep(POLL_S)

    def begins(self, name, text):
        try:
            return self.read(name).startswith(text)
        except FileNotFoundError:
            return False

    def step(self, kind, name, text=b""):
        path = self.path(name)
        if kind == "write":
            with open(path, "wb") as file:
                file.write(text)
        elif kind == "put":
            with open(path + ".new", "wb") as file:
                file.write(text)
            os.rename(path + ".new", path)
        elif kind == "remove":
            os.remove(path)
        elif kind == "there":
            self.wait(f"{name} there", lambda: os.path.exists(path))
        elif kind == "gone":
            self.wait(f"{name} gone", lambda: not os.path.exists(path))
        elif kind == "status":
            self.wait(f"status {name}", lambda: self.begins("status.txt", name.encode("latin-1")))
        elif kind == "reads" and self.read(name) != text:
            raise SystemExit(f"{name} is {self.read(name)!r}, not {text!r}")
        elif kind == "begins" and not self.begins(name, text):
            raise SystemExit(f"{name} is {self.read(name)!r}, and does not begin with {text!r}")

    def play(self):
        with open(os.environ["REPLAY"]) as file:
            steps = json.load(file)
        for kind, name, *text in steps:
            self.step(kind, name, *(each.encode("latin-1") for each in text))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        replay = Replay(sys.argv[1])
        replay.worker = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
        replay.play()
        replay.step("write", "status.txt", b"exit")
        sys.exit(replay.worker.wait(BOUND_S))
    replay = Replay(os.path.join(os.environ["TR_WORKSPACE"], "python_session", "tr_session_" + sys.argv[1]))
    replay.play()
    replay.step("status", "exit")
