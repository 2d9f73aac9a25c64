"""``python -m tr_mmap.cli`` is ``tr-mmap``."""

from . import main

if __name__ == "__main__":
    main()
