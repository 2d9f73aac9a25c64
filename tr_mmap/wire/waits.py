"""How long each side waits, and how much it reads, where both languages do."""

from __future__ import annotations

from typing import Final

WAIT_SLICE_S: Final = 1.0  # a lost ring delays a message by this much at most; one wake-up a second costs nothing
MAX_DRAINED_RINGS: Final = 1 << 16  # taken at a time, so that a peer that rings without pause keeps nobody here
MAX_SPIN_US: Final = 1000.0  # so short that Ctrl-C, a timeout and the worker's death can wait for its end

# A status that is read in the middle of a store is read again. Three pauses outlast any store of 4 KiB; what still
# makes no sense then is no status.
STATUS_RETRIES: Final = 3
STATUS_RETRY_S: Final = 0.0001

DEFAULT_TIMEOUT_MS: Final = 10_000.0
EXIT_TIMEOUT_MS: Final = 5_000.0

CLAIM_WAIT_S: Final = 2.0  # for another's sweep, and for a dead owner's worker to follow it: both take milliseconds
CLAIM_RETRY_S: Final = 0.005
KILL_WAIT_S: Final = 2.0  # for SIGKILL to show; a process in an uninterruptible wait is left to the kernel
TERMINATE_GRACE_S: Final = 1.0  # between SIGTERM and SIGKILL to a worker and what it started

POLL_S: Final = 0.1  # where nothing wakes us: whether a process lives (without a pidfd), whether a log has grown

LOG_TAIL_NBYTES: Final = 16 << 10  # what of a dead worker's output goes into an error: a traceback or two
MAX_ENVIRON_NBYTES: Final = 8 << 20  # of a process that is asked for its mark: more than the kernel lets one start with
MAX_MANIFEST_NBYTES: Final = 64 << 10  # a real one is under 1 KiB; nobody is made to read an endless one
