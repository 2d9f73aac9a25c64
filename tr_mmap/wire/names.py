"""Names: of files and directories, of environment variables, and what may name a tensor or a session."""

from __future__ import annotations

from typing import Final

# Tags and session ids are letters and digits of ASCII and these; they do not begin with a dot.
NAME_PUNCTUATION: Final = "_.-"
MAX_TAG_LENGTH: Final = 128  # with ".tsr" and a sequence number well under NAME_MAX (255)
MAX_SESSION_ID_LENGTH: Final = 64  # goes into semaphore names too, beside other parts
MAX_SEGMENT_NAME_LENGTH: Final = 200  # without its suffix
TENSOR_SUFFIX: Final = ".tsr"
RESULT_PREFIX: Final = "result"  # of the worker's segments: result_0.tsr, result_1.tsr, …
SEGMENT_PREFIX: Final = "segment"  # of the controller's; no tag may be of either form

DOORBELL_PREFIX: Final = "/tr_"
MAX_DOORBELL_LENGTH: Final = 240  # after its prefix

SHM_DIR: Final = "/dev/shm"  # where glibc keeps semaphores, and where the default workspace is
SESSIONS_DIR: Final = "python_session"  # the original framework's names
SESSION_PREFIX: Final = "tr_session_"
MANIFEST_FILE: Final = "session.json"
LOG_FILE: Final = "worker.log"
DEFAULT_WORKER: Final = "default"

# Each language sweeps what the other's dead processes left, so both must use the same names: of the default workspace,
# and beside the sessions .new-<pid>-<start ticks>-<hex> while one is made, .gone-… while one is removed.
DEFAULT_ROOT_PREFIX: Final = "tr_mmap-"  # the user's number follows
NEW_PREFIX: Final = ".new-"
GONE_PREFIX: Final = ".gone-"
# Of a file that a rename will put in another's place. No tag begins with a dot, so it is no tensor's.
TEMPORARY_PREFIX: Final = ".tr_mmap-"
TEMPORARY_SUFFIX: Final = ".tmp"

WORKSPACE_VARIABLE: Final = "TR_WORKSPACE"
WORKER_MARK_VARIABLE: Final = "TR_MMAP_WORKER"  # says which worker's tree a process belongs to
SECRET_FD_VARIABLE: Final = "TR_MMAP_AUTH_FD"
LIFELINE_FD_VARIABLE: Final = "TR_MMAP_LIFELINE_FD"
