"""Builds a shared library with g++, and runs it contained on a tensor.

python examples/native/normalize.py
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from tr_mmap.cpp import include_dir
from tr_mmap.sandbox import AlgorithmError, Limits, Sandbox

here = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "normalize.so"
        flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", f"-I{include_dir()}"]
        subprocess.run(["g++", *flags, "-o", library, here / "normalize.cpp"], check=True)
        with Sandbox("native", limits=Limits(memory_nbytes=64 << 20, wall_ms=2000)) as box:
            # Its bytes are read now; nothing of it is executed before it runs.
            box.register("normalize", library, outputs=("y", "means"))
            x = np.arange(6, dtype=np.float32).reshape(3, 2)
            outputs = box.run("normalize", {"x": x}).outputs
            print(outputs["y"].astype(float).round(3).tolist(), outputs["means"].tolist())
            print(box.call("normalize", "tr_run", x)["means"].tolist())
            try:
                box.run("normalize", {"x": x.astype(np.float64)})
            except AlgorithmError as error:
                print(error)


if __name__ == "__main__":
    main()
