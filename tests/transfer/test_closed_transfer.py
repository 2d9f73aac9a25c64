"""A result that is asked for when its worker is gone is stale, as any other that is not there any more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tr_mmap import StaleTensor
from tr_mmap.protocol.messages import Request
from tr_mmap.transfer.options import TransferOptions
from tr_mmap.transfer.segments import SegmentControllerTransfer, SegmentWorkerTransfer


@pytest.mark.parametrize("end", [SegmentControllerTransfer.worker_ended, SegmentControllerTransfer.close])
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_result_of_a_worker_that_is_gone_is_stale(tmp_path: Path, end: object, framework: str) -> None:
    controller = SegmentControllerTransfer(str(tmp_path), TransferOptions())
    worker = SegmentWorkerTransfer(str(tmp_path), TransferOptions())
    controller.worker_started(lambda: False)
    worker.begin(Request(1, "x"))
    worker.publish([np.ones(3)])
    (ref,) = worker.end(Request(1, "x"), True)
    worker.close(is_orphan=True)
    assert callable(end)
    end(controller)
    with pytest.raises(StaleTensor):
        controller.receive(ref, framework)
    controller.close()
