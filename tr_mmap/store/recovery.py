"""After the machine has started again: removes the records whose files did not reach the disk, and logs their ids."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from ..processes.identity import Identity
from .catalogue import Catalogue
from .changes import Changes
from .checking import check, find_lost
from .errors import StoreCorrupt
from .options import Options
from .places import Places
from .slabs import SlabFiles

__all__ = ["recover"]

_BOOT_KEY: Final = b"boot"  # the boot of the machine in which all files were last checked
_SHOWN: Final = 5  # ids in a line of the log

_log = logging.getLogger("tr_mmap")


def recover(
    catalogue: Catalogue,
    places: Places,
    options: Options,
    files: Callable[[], SlabFiles | None],
    write: Callable[[Callable[[Changes], Any]], Any],
) -> None:
    """Check all records and remove the damaged ones, unless a process has done so since the machine was started.

    Several processes may do so at once. Each checks without a lock, and removes what it found only if no other process
    has finished its recovery meanwhile.

    Args:
        catalogue: of the store.
        places: of its files.
        options: of it.
        files: gives its slabs.
        write: makes one commit.

    Raises:
        StoreCorrupt: the store has other faults than records with missing or damaged files.
    """
    boot = (Identity.current().boot_id or "").encode()
    with catalogue.read() as transaction:
        noted = transaction.get(_BOOT_KEY, db=transaction.meta)
    if not boot or noted == boot:
        return
    if noted is not None:
        lost, slabs = find_lost(catalogue, places, files())

        def remove(changes: Changes) -> list[str] | None:
            is_current = changes.noted(_BOOT_KEY) == noted
            return changes.remove_lost(lost, slabs) if is_current else None

        removed = write(remove) if lost or slabs else []
        if removed is None:
            return  # another process has finished; the records may have changed since they were checked here
        if removed:
            shown = ", ".join(map(repr, removed[:_SHOWN])) + (", ..." if len(removed) > _SHOWN else "")
            _log.warning(
                "the store in %s has lost %d records, which were not on the disk when the machine stopped: %s",
                places.directory,
                len(removed),
                shown,
            )
        wrong = check(catalogue, places, options, files())
        if wrong:
            raise StoreCorrupt(
                f"{places.directory}: {wrong[0]} ({len(wrong)} lines of this kind, after another start of "
                "the machine); restore it from a copy",
                path=places.directory,
            )
    catalogue.write(lambda transaction: transaction.put(_BOOT_KEY, boot, db=transaction.meta))
