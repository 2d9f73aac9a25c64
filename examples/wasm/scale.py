"""Runs a compiled algorithm on a tensor that is mapped into its memory, and a command on a text.

pip install 'tr_mmap[sandbox]'
python examples/wasm/scale.py
"""

import hashlib
from pathlib import Path

import numpy as np

from tr_mmap.sandbox import AlgorithmError, Limits, Sandbox

here = Path(__file__).parent


def main() -> None:
    limits = Limits(memory_nbytes=16 << 20, wall_ms=2000, stack_nbytes=1 << 20)
    with Sandbox("wasm", limits=limits) as box:
        code = (here / "scale.wasm").read_bytes()
        # Only this module; reuse keeps its instance, and its tensors mapped, from run to run.
        scale = box.register("scale", code, sha256=hashlib.sha256(code).hexdigest(), reuse=True)
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        print(box.run(scale, {"x": x}).outputs["output"].tolist())
        try:
            box.run(scale, {"x": x.astype(np.float64)})
        except AlgorithmError as error:
            print(error)

        words = box.register("words", (here / "words.wasm").read_bytes())
        print(box.run(words, {"stdin": "to be or not to be"}).stdout, end="")


if __name__ == "__main__":
    main()
