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

# A slab is a file of many small segments, its slots: so 2 mappings of the reader serve them all, and thousands of small
# results stay within vm.max_map_count (65,530). First come the headers of all slots, a page each, then their payloads.
# Slot 3 of the 16 in result_7.tsr has the name result_7.3of16.tsr.
SLOT_NBYTES: Final = MIN_CLASS_NBYTES  # payload capacity of a slot
SLOT_MARK: Final = "."
SLOTS_MARK: Final = "of"
MAX_SLOTS: Final = 256  # a slab of so many is 2 MiB
# A pool makes segments of its smallest size in files of their own until it has so many of them; then slabs, each with
# half as many slots as there are segments. So a small session stays small, and at most a third is made in advance.
FEW_SEGMENTS: Final = 16

# A take looks at so many of the free segments that the reader had a view of when they were last looked at. All of them
# are seen within a bounded number of takes, and a take costs the same however many there are.
LOOKS_PER_TAKE: Final = 16
# Segments that went idle are looked for once in so many takes.
TRIM_TAKES: Final = 64
# A tensor of another pool is handed on from this size on: to copy a smaller one takes less time than to name it.
GIVEN_NBYTES: Final = 64 << 10
# Received tensors that are private are copied up to this size; a larger one gets a copy-on-write mapping. And a torch
# loan of this size or less is copied when it is published, because torch has no read-only tensors.
PRIVATE_COPY_NBYTES: Final = 64 << 10
# A tensor from this size on is copied into a pool of several sessions without the pool's lock. To copy a smaller one
# takes less time than the other steps.
APART_NBYTES: Final = 1 << 20

# A reader keeps so many segments mapped that it has no view of; beyond, it unmaps those it has not used for longest.
MAX_UNVIEWED: Final = 2048
