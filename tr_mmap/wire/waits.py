"""Waits, retries and timeouts, where both languages need the same values."""

from __future__ import annotations

from typing import Final

WAIT_SLICE_S: Final = 1.0  # a lost ring delays a message by this much at most; one wake-up a second costs nothing
# A signal between the look for signals and the sleep does not end the sleep, nor does one that the kernel gives to
# another thread. So Python's main thread, which runs the handlers, sleeps for 50 ms at a time at first; and later for a
# share of the time that it has waited, so that an idle worker wakes once a second only.
SIGNAL_SLICE_S: Final = 0.05
SIGNAL_SLICE_SHARE: Final = 0.005  # 50 ms of the first 10 s, and a second of 200 s
MIN_SLICE_S: Final = 0.001  # a shorter one would be a busy wait

# Two threads of a process may wait at one doorbell, one of them for a status. A ring wakes only one of them, so a wait
# for a status looks again after so long in any case.
STATUS_SLICE_S: Final = 0.02
MIRROR_CHECK_S: Final = 1.0  # how often to see whether a mirror's name leads to another file; also to try again
MAX_DRAINED_RINGS: Final = 1 << 16  # taken at a time, because a peer that rings without pause must not block us here
MAX_SPIN_US: Final = 1000.0  # so short that Ctrl-C, a timeout and the worker's death can wait for its end

# A status is read again if the read was torn. Three pauses outlast any store of 4 KiB; a text that cannot be parsed
# after that is no status.
STATUS_RETRIES: Final = 3
STATUS_RETRY_S: Final = 0.0001

DEFAULT_TIMEOUT_MS: Final = 10_000.0
EXIT_TIMEOUT_MS: Final = 10_000.0
# For a worker that is ready, and is asked to release the memory that it keeps; takes milliseconds.
RELEASE_TIMEOUT_MS: Final = 1000.0

CLAIM_WAIT_S: Final = 2.0  # for another process's sweep, or a dead controller's worker to end: both take milliseconds
CLAIM_RETRY_S: Final = 0.005
KILL_WAIT_S: Final = 2.0  # for SIGKILL to show; a process in an uninterruptible wait is left to the kernel
# A worker's status says that it has ended its service, but its process still lives. The controller waits for so long
# for the process to end, because its exit code tells more than the status.
FAREWELL_GRACE_S: Final = 0.5
TERMINATE_GRACE_S: Final = 1.0  # between SIGTERM and SIGKILL to a worker and the processes that it started

# For a resource tracker, from the death of those that use it; takes milliseconds.
TRACKER_GRACE_S: Final = 1.0

# A worker lets a running handler go on for so long after its controller's death; then it removes the session, and ends
# what it started. Who waits for such a worker waits for both.
ORPHAN_GRACE_S: Final = 2.0
ORPHAN_WAIT_S: Final = 2 * ORPHAN_GRACE_S

POLL_S: Final = 0.1  # for what cannot wake us: the death of a process (without a pidfd), a log that grows
