"""Makes the handwritten digits that the demo classifies: ``examples/digits/digits.tsr`` and ``labels.tsr``.

They are the 1,797 digits of 8 x 8 pixels (0 to 16, white to black) that scikit-learn ships as ``load_digits``, which
are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine
Learning Repository, CC BY 4.0). Only this script needs scikit-learn: the two files are kept with the sources.

    pip install -c tools/constraints.txt scikit-learn
    python tools/make_digits.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import tr_mmap

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "digits"


def main() -> None:
    """Write both files, and read them back."""
    digits = load_digits()
    for name, values in (("digits.tsr", digits.images), ("labels.tsr", digits.target)):
        tensor = values.astype(np.uint8)
        if not np.array_equal(tensor, values):
            raise SystemExit(f"{name}: the values are not whole numbers from 0 to 255")
        tr_mmap.save(FOLDER / name, tensor, checksum=True)
        if not np.array_equal(tr_mmap.load(FOLDER / name, verify=True), tensor):
            raise SystemExit(f"{name} does not read back as it was written")
        print(f"{name}: {tensor.dtype} {tensor.shape}, {(FOLDER / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
