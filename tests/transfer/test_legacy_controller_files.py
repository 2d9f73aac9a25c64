"""What the controller keeps in files for a legacy worker, and takes from it, is whole whatever else happens."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tr_mmap import MissingTag, SystemLimit, save
from tr_mmap.protocol.legacy import encode_legacy
from tr_mmap.protocol.messages import Response, TensorRef
from tr_mmap.transfer.legacy_files import LegacyControllerTransfer


def test_a_result_that_no_descriptor_is_left_for_is_received_later(tmp_path: Path) -> None:
    transfer = LegacyControllerTransfer(str(tmp_path), budget_nbytes=None)
    save(tmp_path / "result_0.tsr", np.arange(3.0), version=1)
    raw = encode_legacy(Response(1, "x", tensors=[TensorRef("result_0", "result_0.tsr", 0)]))
    (ref,) = transfer.decode(raw).tensors
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(SystemLimit):
            transfer.receive(ref, "numpy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert transfer.receive(ref, "numpy").tolist() == [0.0, 1.0, 2.0]
    assert not list(tmp_path.iterdir())


def test_a_request_and_another_threads_put_and_drop_of_its_tag_do_not_meet(tmp_path: Path) -> None:
    transfer = LegacyControllerTransfer(str(tmp_path), budget_nbytes=None)
    is_over = threading.Event()

    def put_and_drop() -> None:
        while not is_over.is_set():
            transfer.put("t", np.ones(4, np.float32))
            try:
                transfer.drop("t")
            except MissingTag:  # pragma: no cover - only this thread drops it
                return

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=put_and_drop)
    thread.start()
    try:
        for seq in range(1, 1001):
            assert transfer.prepare(seq, "x", "t", []).parameters == "t"
    finally:
        is_over.set()
        thread.join()
        sys.setswitchinterval(interval_s)
    transfer.withdraw()
    assert not list(tmp_path.iterdir())
