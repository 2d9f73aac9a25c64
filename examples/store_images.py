"""Search of images by images: 1,000 handwritten digits, found by 797 others."""

import tempfile
from pathlib import Path

import numpy as np

import tr_mmap
from tr_mmap.store import Store

DIGITS = Path(__file__).resolve().parent / "digits"
KNOWN = 1000


def main() -> None:
    images = tr_mmap.load(DIGITS / "digits.tsr")  # uint8, 1797 × 8 × 8
    labels = tr_mmap.load(DIGITS / "labels.tsr")
    pixels = images.reshape(len(images), -1)

    with (
        tempfile.TemporaryDirectory() as folder,
        Store("digits", folder, dtype="uint8", metric="l2", indexed=("digit",)) as store,
    ):
        store.add_many(
            {
                "id": f"digit {number}",
                "vector": pixels[number],
                "tensors": {"image": images[number]},
                "metadata": {"digit": int(labels[number])},
            }
            for number in range(KNOWN)
        )
        stats = store.stats()
        print(f"{stats.records} images, {stats.vectors} vectors")

        asked = KNOWN + 3
        print(f"asked for a {labels[asked]}; the nearest:")
        for hit in store.search(pixels[asked], limit=3):
            print(f"  {hit.record.id}: a {hit.record.metadata['digit']}, distance {hit.distance:.1f}")
        (odd,) = store.search(pixels[asked], limit=1, filters={"NOT": {"digit": int(labels[asked])}})
        print(f"the nearest that is another digit: a {odd.record.metadata['digit']}")

        image = odd.record.tensors["image"]  # a view of the store's own memory
        print("its image:", image.shape, image.dtype, "read-only:", not image.flags.writeable)

        right = sum(
            store.search(pixels[number], limit=1)[0].record.metadata["digit"] == labels[number]
            for number in range(KNOWN, len(images))
        )
        print(f"{right / (len(images) - KNOWN):.1%} of {len(images) - KNOWN} digits recognised by their nearest")
        print("all labels known:", sorted(np.unique(labels).tolist()) == list(range(10)))


if __name__ == "__main__":
    main()
