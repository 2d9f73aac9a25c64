"""``python -m tr_mmap`` is ``tr-mmap``."""

from .cli import main

if __name__ == "__main__":
    main()
