"""A map over the files of a folder, by two workers, with a progress bar (of tqdm, where it is installed).

This file is the controller and the worker. One file is broken: its error names it, and the others have their results.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np

from tr_mmap import Server, SessionPool

server = Server()


@server.command("summarize")
def summarize(path: str):
    try:
        image = np.load(path)
    except ValueError:
        return f"{Path(path).name} is broken"
    return {"name": Path(path).name, "mean": float(image.mean()), "largest": image.max(axis=0)}


def make_folder(folder: Path) -> None:
    for number in range(40):
        np.save(folder / f"{number:02}.npy", np.full((64, 64), number, np.float32))
    (folder / "broken.npy").write_bytes(b"no array")


def main() -> None:
    progress = "files" if importlib.util.find_spec("tqdm") else None
    with tempfile.TemporaryDirectory() as name, SessionPool(__file__, max_workers=2, retries=1) as pool:
        folder = Path(name)
        make_folder(folder)
        results = list(pool.map("summarize", sorted(folder.glob("*.npy")), progress=progress))
        texts = [each for each in results if isinstance(each, str)]
        good = [each for each in results if not isinstance(each, str)]
        print(
            "read:", len(good), "first:", good[0]["name"], good[0]["mean"], "last:", good[-1]["name"], good[-1]["mean"]
        )
        print("and:", *texts)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run()
    else:
        main()
