"""Three processes, one store: what one commits the others see at once, and their counts add up."""

import subprocess
import sys
import tempfile

from tr_mmap.store import Store, VersionConflict

TIMES = 200


def count(store: Store) -> None:
    """Count up, each time from what is there: if somebody was faster, from what he has left."""
    for _ in range(TIMES):
        while True:
            record = store.get("visits")
            try:
                store.update("visits", metadata={"n": record.metadata["n"] + 1}, if_version=record.version)
                break
            except VersionConflict:
                pass


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Store("shared", folder) as store:
        store.add(id="visits", metadata={"n": 0})
        others = [subprocess.Popen([sys.executable, __file__, folder]) for _ in range(2)]
        count(store)
        for other in others:
            other.wait()
        record = store.get("visits")
        print("counted:", record.metadata["n"], "version:", record.version)
        print("said by the others:", [each.content for each in store.get_all(filters={"content": {"ne": None}})])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with Store("shared", sys.argv[1]) as its_own:
            count(its_own)
            its_own.add("done")
    else:
        main()
