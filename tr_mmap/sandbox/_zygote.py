"""``python -m tr_mmap.sandbox._zygote``."""

from .zygote import main

main()
