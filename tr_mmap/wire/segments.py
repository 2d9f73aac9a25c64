"""Segments: where the payload begins, which sizes there are, and from which size on they are filled differently."""

from __future__ import annotations

from typing import Final

# The payload begins on the second memory page, so that the reader can map the header for writing (its lease) and the
# payload for reading only.
HEAD_NBYTES: Final = 4096
PAYLOAD_OFFSET: Final = HEAD_NBYTES

MIN_CLASS_NBYTES: Final = 4096  # a memory page
STEPS_PER_OCTAVE_LOG2: Final = 3  # 8 sizes between powers of two: at most 12.5 % of a segment is unused

# From this capacity on, write(2) fills a new file: then the kernel neither zeroes the pages first nor faults them in
# one by one (64 MiB: 52 ms against 92 ms). A mapping is populated in one call before it is first filled (8 ms against
# 52 ms).
POPULATE_NBYTES: Final = 256 << 10
# A free segment that so many takes in a row did not use is retired: the sizes of the tensors have changed.
IDLE_TAKES: Final = 512
