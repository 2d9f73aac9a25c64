"""Runs a command and adopts the orphans below it, as systemd does for a user and docker-init for a container.

Arguments: the command. Ends with the command's status, when it has ended.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36

if __name__ == "__main__":
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise SystemExit("no subreaper")
    command = subprocess.Popen(sys.argv[1:])
    code = 0
    while True:  # also what it has adopted
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break
        if pid == command.pid:
            code = os.waitstatus_to_exitcode(status)
            print(f"command ended {code}", file=sys.stderr, flush=True)
    os._exit(0)
