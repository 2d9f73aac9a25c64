"""A controller of the legacy dialect in a project: PROJECT FOLDER ID SCRIPT. The standard library, none of our code.

As programs of its time do, it starts the worker by ``system("python3 \"SCRIPT\" ID &")``: the shell between them is
gone at once, so this program has no number and no end of its worker to look at. Its sessions are in
``PROJECT/workspace/FOLDER``, which is compiled into it; the worker is told the ID only. Takes the steps of
``old_controller.py``, and removes the session's directory at its normal end. With the step ``{"work": true}`` it asks
again and again, checks each answer, prints a line after the first one, and ends only by being killed. With
``{"scribble": true}`` it prints a line, and writes a file again and again without a pause, until it is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time

from old_controller import POLL_S, Controller, take_steps, write_tensor


class NoProcess:
    """What there is of a worker that a shell has started."""

    returncode = None

    def poll(self):
        return None


class ShellController(Controller):
    def __init__(self, project, folder, session_id, script):
        self.directory = os.path.join(project, "workspace", folder, "tr_session_" + session_id)
        os.makedirs(self.directory, exist_ok=True)
        self.write_status("ready")
        self.worker = NoProcess()
        if os.system(f'"{sys.executable}" "{script}" {session_id} &') != 0:
            raise SystemExit("no shell")

    def step(self, step):
        if "exit" in step:
            self.write_status("exit")
            while self.read_status() != "terminated":
                time.sleep(POLL_S)
            shutil.rmtree(self.directory)
            return {}
        if "work" in step:
            self.work()
        if "scribble" in step:
            self.scribble()
        return super().step(step)

    def work(self):
        number = 0
        while True:
            values = [float(number), float(number + 1)]
            write_tensor(self.path("a.tsr"), "float32", [2], values)
            answer = self.ask('{"cmd": "echo", "params": "a"}', "tensors")
            if [each["values"] for each in answer.get("tensors", [])] != [values]:
                raise SystemExit(f"request {number}: {answer}")
            if self.ask('{"cmd": "hello", "params": "bob"}', "text")["params"] != "Hello Bob":
                raise SystemExit(f"request {number}: no greeting")
            if number == 0:
                print(json.dumps({"working": True}), flush=True)
            number += 1

    def scribble(self):
        print(json.dumps({"scribbling": True}), flush=True)
        while True:
            with open(self.path("a.tsr"), "w") as file:
                file.write("x")
            os.stat(self.path("a.tsr"))  # since Linux 6.13 its next time is a fine one


def main(*arguments):
    controller = ShellController(*arguments)
    print(json.dumps({"started": True}), flush=True)
    take_steps(controller)


if __name__ == "__main__":
    main(*sys.argv[1:])
