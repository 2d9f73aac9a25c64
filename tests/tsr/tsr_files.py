"""What the tests of files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tr_mmap.errors import Fault, TSRFormatError
from tr_mmap.tsr.dtypes import by_name

F32 = by_name("float32")
ARRAY = np.arange(15, dtype=np.float32).reshape(3, 5)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def fault_of(action: Callable[[], Any]) -> Fault:
    with pytest.raises(TSRFormatError) as caught:
        action()
    return caught.value.fault
