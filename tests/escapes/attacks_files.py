# ruff: noqa: E501 - each line is a program
"""What an algorithm tries with the descriptor of a file that it reads in place. Each sets ``output`` if it has worked."""

from __future__ import annotations

from attacks import AREAS, LIBC

COUNT = 200_000
"""Of float64 in the file; its size is no multiple of a page, so no area of ours has it."""

FIND = AREAS + f"fd = next(each for each in areas if os.fstat(each).st_size == {8 * COUNT})\n"

FILE_ATTACKS = {
    "read it": "output = len(os.pread(fd, 8, 0))",
    "12 truncate it": "os.ftruncate(fd, 0); output = 1",
    "12 truncate it by the path of its descriptor": "os.truncate(f'/proc/self/fd/{fd}', 0); output = 1",
    "12 make a hole": "import ctypes\n" + LIBC + "output = call('fallocate', fd, 3, 0, 4096)",
    "13 write by its descriptor": "output = os.pwrite(fd, b'x', 0)",
    "13 open it again and write": "output = os.write(os.open(f'/proc/self/fd/{fd}', os.O_RDWR), b'x')",
    "13 open it again to append": "output = os.write(os.open(f'/proc/self/fd/{fd}', os.O_WRONLY | os.O_APPEND), b'x')",
    "13 open it again by its thread": "output = os.write(os.open(f'/proc/thread-self/fd/{fd}', os.O_RDWR), b'x')",
    "13 open it again from its directory": "output = os.write(os.open(str(fd), os.O_RDWR, dir_fd=os.open('/proc/self/fd', os.O_PATH)), b'x')",
    "13 open it by its name": "output = os.write(os.open(os.readlink(f'/proc/self/fd/{fd}'), os.O_RDWR), b'x')",
    "13 open it by a handle": LIBC
    + "import ctypes\nhandle = ctypes.create_string_buffer(bytes([128, 0, 0, 0]) + bytes(200))\nmount = ctypes.c_int()\n"
    "call('name_to_handle_at', fd, ctypes.c_char_p(b''), handle, ctypes.byref(mount), 0x1000)\n"
    "output = os.write(call('open_by_handle_at', fd, handle, os.O_RDWR), b'x')",
    "13 map it to write": "import mmap; m = mmap.mmap(fd, 4096); m[0] = 120; output = 1",
    "13 let its mapping be written": LIBC
    + "x = inputs['x']; start = x.ctypes.data & -4096; check(libc.mprotect(ctypes.c_void_p(start), 4096, 3)); ctypes.memset(start, 120, 1); output = 1",
    "13 change its mode": "os.fchmod(fd, 0o777); output = 1",
    "13 change its owner": "os.fchown(fd, 12345, 12345); output = 1",
    "13 change its times": "os.utime(fd, (1, 1)); output = 1",
    "13 set an attribute": "os.setxattr(fd, 'user.x', b'x'); output = 1",
    "13 lock it": "import fcntl; fcntl.flock(fd, fcntl.LOCK_EX); output = 1",
    "13 lease it": "import fcntl; fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK); output = 1",
    "13 link it elsewhere": LIBC
    + "path = f'/proc/self/fd/{fd}'; there = os.path.dirname(os.readlink(path)) + '/link'\n"
    "output = 1 + call('linkat', -100, ctypes.c_char_p(path.encode()), -100, ctypes.c_char_p(there.encode()), 0x400)",
    "13 seal it": "import fcntl; fcntl.fcntl(fd, 1033, 8); output = 1",
    "13 send a copy into it": "output = os.sendfile(fd, os.open('/dev/urandom', os.O_RDONLY), None, 8)",
}

NO_CONTROL = {
    "read it",
    "12 truncate it", "12 make a hole", "13 write by its descriptor", "13 map it to write", "13 let its mapping be written",
    "13 seal it", "13 send a copy into it",
}  # fmt: skip
"""The kernel refuses these of every process, because the descriptor only reads; or it is no attack."""

FOR_ROOT = {"13 open it by a handle", "13 change its owner"}
"""The plain program works for root only."""
