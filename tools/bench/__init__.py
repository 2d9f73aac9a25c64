"""The benchmark: tr_mmap and everything people would otherwise use, interleaved in one run. See ``__main__``."""
