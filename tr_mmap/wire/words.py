"""Words of errors that the Python and the C++ controller say alike, and the line by which a worker's log is read."""

from __future__ import annotations

from typing import Final

# A worker writes this line to its log after the traceback of an error that a request gets as its answer. If the worker
# dies later, that traceback is not why. So what is before the last of these lines is not in the error.
ANSWERED_LINE: Final = "[tr_mmap: the error above is the answer to a request]"

# What Python writes at a fatal error: how the line ends with which a thread begins; by which parts of its path a file
# is of the standard library, in which others wait; and by which it is of this library.
DUMP_THREAD: Final = " (most recent call first):"
DUMP_OF_PYTHON: Final = "/threading.py /selectors.py /asyncio/ /concurrent/futures/"
DUMP_OF_LIBRARY: Final = "/tr_mmap/worker/ /tr_mmap/channel/ /tr_mmap/base/ /tr_mmap/native/ /tr_mmap/processes/"

# WorkerDied: what follows how the worker ended.
LAST_OUTPUT: Final = "; its last output:\n"
NO_OUTPUT: Final = "; it printed nothing"
NO_OUTPUT_SINCE: Final = "; it printed nothing since its last answer"

# ResponseTimeout: what the worker has done with the request, what its process does, and what to do.
TAKEN_UP: Final = "the worker has begun to work on it"
NOT_TAKEN_UP: Final = "the worker has not begun to work on it"
BUSY_WITH_OTHER: Final = ", because it works on a request that somebody wrote by hand"  # follows NOT_TAKEN_UP
STILL_STARTING: Final = "the worker is still starting"
NOT_SENT: Final = ", because another request is under way"
PROCESS_IS: Final = " is "  # between the process's number and one of the next five words
PROCESS_RUNNING: Final = "running"
PROCESS_WAITING: Final = "waiting"
PROCESS_STOPPED: Final = "stopped"
PROCESS_ENDED: Final = "ended"
PROCESS_UNKNOWN: Final = "unknown"
LAST_MOVED: Final = ", and last moved "  # seconds follow
WAIT_ADVICE: Final = "give it more time, or terminate() and start() the worker"
ABORT_ADVICE: Final = "; to see where it is, end it with kill -ABRT "  # the process's number follows
STOPPED_ADVICE: Final = "a signal or a debugger has stopped it: continue it with kill -CONT "  # here too
NO_REQUEST: Final = "no request was made whose answer is still to be taken, so none came within "  # a timeout follows

# SessionNotStarted: what follows the session's name.
CLOSED_MEANWHILE: Final = " was closed meanwhile"
OF_PARENT: Final = (
    " belongs to the parent process, which this one was forked from; this process may read its tensors, but makes no "
    "requests: start a session of its own here"
)
NOT_STARTED: Final = " is not started; call start()"
NO_WORKER: Final = " has no worker; call start()"
