"""Algorithms that are not trusted, on tensors: results, limits, denials, errors, and memory that is not copied."""

import numpy as np

from tr_mmap.sandbox import AlgorithmError, LimitExceeded, Limits, NotAllowed, Sandbox

NORMALIZE = """
import numpy as np

def normalize(inputs):
    x = inputs["x"]
    print("normalizing", x.shape)
    return {"y": (x - x.mean()) / x.std(), "mean": float(x.mean())}
"""

BAD = {
    "reads a file": "output = open('/etc/passwd').read()",
    "calls home": "import socket; socket.create_connection(('127.0.0.1', 80))",
    "starts a process": "import os; os.system('id')\nos.fork()",
    "never ends": "while True: pass",
    "takes all memory": "output = len(bytearray(1 << 40))",
    "is wrong": "output = 1 / 0",
}


def main() -> None:
    with Sandbox(limits=Limits(memory_nbytes=256 << 20, wall_ms=1000)) as box:
        algorithm = box.register("normalize", NORMALIZE)
        x = box.empty((512, 512))  # read in place; an array of your own is copied once
        x[:] = np.arange(512)
        response = box.run(algorithm, {"x": x})
        y = response.outputs["y"]
        print(f"mean {response.outputs['mean']}, then {y.mean():.1f}; copied: {response.copied_nbytes} bytes")
        print("it printed:", response.stdout.strip())

        for what, code in BAD.items():
            try:
                box.execute(code)
                print(f"{what}: no error")
            except (NotAllowed, LimitExceeded, AlgorithmError) as error:
                print(f"{what}: {type(error).__name__}: {str(error)[:90]}")
        print("and the next run:", box.execute("output = 'well'").outputs["output"])


if __name__ == "__main__":
    main()
