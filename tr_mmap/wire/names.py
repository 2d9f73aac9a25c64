"""Names of files, directories and environment variables, and the characters and lengths that names may have."""

from __future__ import annotations

from typing import Final

# Tags and session ids are letters and digits of ASCII and these; they do not begin with a dot.
NAME_PUNCTUATION: Final = "_.-"
MAX_TAG_LENGTH: Final = 128  # together with ".tsr" it is well under NAME_MAX (255)
MAX_SESSION_ID_LENGTH: Final = 64  # the id is part of a directory's name
MAX_SEGMENT_NAME_LENGTH: Final = 200  # without its suffix
TENSOR_SUFFIX: Final = ".tsr"
RESULT_PREFIX: Final = "result"  # of the worker's segments: result_0.tsr, result_1.tsr, …
HAND_RESULT_PREFIX: Final = "by_hand"  # of the results of a request by hand: plain files by_hand_0.tsr, …
SEGMENT_PREFIX: Final = "segment"  # of the controller's segments; no tag may have either form

# Tensors of other pools have links in a session's directory: given-0_0.tsr, given-0_1.tsr, … those of one pool, and
# given-0.readers its page of readers. given-file_0.tsr is a link to a plain file that the controller has loaded. No tag
# may have the form of the first or the last.
GIVEN_PREFIX: Final = "given-"
GIVEN_FILE_PREFIX: Final = "given-file"
# segment.readers says which lease lines of segment_0.tsr, segment_1.tsr, … have a reader.
READERS_SUFFIX: Final = ".readers"

DOORBELL_PREFIX: Final = "/tr_"
MAX_DOORBELL_LENGTH: Final = 240  # after its prefix

SHM_DIR: Final = "/dev/shm"  # where glibc keeps semaphores; the default workspace is here too
SESSIONS_DIR: Final = "python_session"  # this name and the next are the original framework's
SESSION_PREFIX: Final = "tr_session_"
MANIFEST_FILE: Final = "session.json"
LOG_FILE: Final = "worker.log"
# Each process of a session holds the flock of its file for life. So others can judge it where its pid says nothing.
CONTROLLER_LOCK_FILE: Final = "controller.lock"
WORKER_LOCK_FILE: Final = "worker.lock"
DEFAULT_WORKER: Final = "default"

# Each language sweeps what dead processes of the other left, so both must use the same names. Beside the sessions,
# .new-<pid>-<start ticks>-<hex> is one that is being made, and .gone-… is one that is being removed. .pool-… has the
# segments of a process.
DEFAULT_ROOT_PREFIX: Final = "tr_mmap-"  # the user's number follows
NEW_PREFIX: Final = ".new-"
GONE_PREFIX: Final = ".gone-"
POOL_PREFIX: Final = ".pool-"
# Of a temporary file, which a rename puts in place of another. No tag begins with a dot, so no tensor has this name.
TEMPORARY_PREFIX: Final = ".tr_mmap-"
TEMPORARY_SUFFIX: Final = ".tmp"

WORKSPACE_VARIABLE: Final = "TR_WORKSPACE"
WORKER_MARK_VARIABLE: Final = "TR_MMAP_WORKER"  # its value is the mark of the worker that started the process
SECRET_FD_VARIABLE: Final = "TR_MMAP_AUTH_FD"
LIFELINE_FD_VARIABLE: Final = "TR_MMAP_LIFELINE_FD"
LOCK_FD_VARIABLE: Final = "TR_MMAP_LOCK_FD"  # of the worker's life lock
SPARE_VARIABLE: Final = "TR_MMAP_SPARE"  # what a spare is to do before it becomes a worker
PYTHON_VARIABLE: Final = "TR_PYTHON"  # the interpreter of workers
RESOURCE_TRACKER: Final = "resource_tracker"  # in the arguments of a process that cleans up after its users
PACKAGES_VARIABLE: Final = "TR_MMAP_PACKAGES"  # where the default worker finds what it imports, after all other places
