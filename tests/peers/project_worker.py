"""A worker of the legacy dialect in a project: ID. The standard library only, none of our code.

Lies beside ``old_worker.py``, two levels below the project's ``workspace/``, and knows no environment variable.
"""

from __future__ import annotations

import os
import sys

from old_worker import Worker

HERE = os.path.dirname(os.path.abspath(__file__))
SESSIONS = os.path.join(HERE, "..", "..", "workspace", "python_session")


if __name__ == "__main__":
    Worker(os.path.join(SESSIONS, "tr_session_" + sys.argv[1])).run()
