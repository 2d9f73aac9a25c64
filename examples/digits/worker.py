"""The demo's worker: digits by their nearest neighbour, a matrix product, a text, and where its tensors lie."""

from __future__ import annotations

import numpy as np

from tr_mmap import Server

server = Server(framework="numpy")
known: dict[str, np.ndarray] = {}  # what the worker has learned; it lives from one request to the next


def nearest(images: np.ndarray, known_images: np.ndarray, known_labels: np.ndarray) -> np.ndarray:
    """The label of the nearest known image (Euclidean distance) for each image.

    Args:
        images: (n, height, width), any real dtype.
        known_images: (m, height, width).
        known_labels: (m,).

    Returns:
        (n,) labels. Exact for small whole numbers, so that any two computations of it agree.
    """
    points = images.reshape(len(images), -1).astype(np.float32)
    centres = known_images.reshape(len(known_images), -1).astype(np.float32)
    # |p - c|^2 = |p|^2 - 2 p.c + |c|^2, and |p|^2 is the same for every c.
    distances = (centres**2).sum(axis=1) - 2 * points @ centres.T
    return known_labels[distances.argmin(axis=1)]


def mapping_of(array: np.ndarray) -> str:
    """Where an array's data lie: the address, and the line of this process's /proc/self/maps that holds it."""
    address = array.ctypes.data
    with open("/proc/self/maps") as maps:
        for line in maps:
            low, high = (int(limit, 16) for limit in line.split(maxsplit=1)[0].split("-"))
            if low <= address < high:
                return f"{address:#x} {line.rstrip()}"
    raise LookupError(f"no mapping holds {address:#x}")


@server.command("hello")
def hello(name: str) -> str:
    return f"Hello {name.title()}"


@server.command("learn")
def learn(images: np.ndarray, labels: np.ndarray) -> str:
    known.update(images=images, labels=labels)  # views: they stay right for as long as they are kept
    return f"{len(labels)} digits known"


@server.command("classify")
def classify(images: np.ndarray) -> np.ndarray:
    return nearest(images, known["images"], known["labels"])


@server.command("matmul")
def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a @ b


@server.command("corner")
def corner(image: np.ndarray) -> np.ndarray:
    return image[:8, :8]


@server.command("where")
def where(array: np.ndarray) -> str:
    return mapping_of(array)


if __name__ == "__main__":
    server.run()
