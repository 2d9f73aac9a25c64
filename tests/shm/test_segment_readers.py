"""Another process sees every tensor for as long as it looks."""

from __future__ import annotations

import json
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from segment_sides import Sides, python, ref_of
from support import BOUND_S

from tr_mmap.protocol.messages import TensorRef

READER = """
import json, sys, zlib
import numpy as np
from tr_mmap.errors import StaleTensor
from tr_mmap.native import drain
from tr_mmap.protocol.messages import TensorRef
from tr_mmap.shm.reader import SegmentReader
receiver = SegmentReader(sys.argv[1])
views = {}
def crc(view):
    return zlib.crc32(np.ascontiguousarray(view).tobytes())
for line in sys.stdin:
    what, key, *more = json.loads(line)
    if what == "look":
        try:
            views[key] = receiver.receive(*more, "numpy")
        except StaleTensor:
            print(-1, flush=True)
            continue
        print(crc(views[key]), flush=True)
    elif what == "check":
        print(crc(views[key]), flush=True)
    elif what == "drop":
        del views[key]
        drain()
        print(0, flush=True)
"""


class Reader:
    """A reader in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.popen = python(READER, directory)

    def do(self, *words: object) -> int:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(json.dumps(words).encode() + b"\n")
        self.popen.stdin.flush()
        return int(self.popen.stdout.readline())

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(BOUND_S)
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_another_process_sees_every_tensor_for_as_long_as_it_looks(sides: Sides, seed: int) -> None:
    rng = random.Random(seed)
    reader = Reader(sides.directory)
    views: dict[int, int] = {}  # number of a publication to the CRC of its content
    stale: list[TensorRef] = []
    try:
        for number in range(600):
            content = rng.randbytes(rng.choice([0, 10, 5000, 20_000, 300_000]))
            segment = sides.pool.publish(np.frombuffer(content, np.uint8))
            assert reader.do("look", number, segment.name, segment.seq) == zlib.crc32(content)
            views[number] = zlib.crc32(content)
            stale.append(ref_of(segment))
            segment.release()
            if rng.random() < 0.9:
                gone = rng.choice(list(views))
                assert reader.do("check", gone) == views.pop(gone)
                reader.do("drop", gone)
            if rng.random() < 0.1:
                old = rng.choice(stale)
                if old.seq != sides.pool._segments.get(old.segment, segment).seq:
                    assert reader.do("look", -1, old.segment, old.seq) == -1
        for number, crc in views.items():
            assert reader.do("check", number) == crc
        assert sides.pool.stats().created < 250
        sides.pool.reader_died()
        names = set(os.listdir(sides.directory))
        for number, crc in views.items():
            assert reader.do("check", number) == crc
    finally:
        reader.kill()
    assert {segment.name for segment in sides.pool._segments.values()} == names
