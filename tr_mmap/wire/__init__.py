"""Every constant that two processes, or two languages, must agree on: offsets, words, limits, names, waits.

Each is stated here once. ``tools/generate_wire.py`` writes the same constants for the C extension (``native/wire.h``)
and for C++ (``cpp/include/tr_mmap/wire.hpp``, ``dtype_table.hpp``); a test fails when those files are out of date.
This room holds values only: it computes nothing but other constants, and imports nothing of the package.
"""
