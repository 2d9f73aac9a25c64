"""A path means to save, load and read_header what it means to open(); and what a save keeps of the file before it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import bits
from support import environment, run_python
from tsr_files import ARRAY, names

from tr_mmap.base import system
from tr_mmap.base.system import dirents, files
from tr_mmap.errors import Fault, HostilePath, SystemLimit, TSRFormatError
from tr_mmap.tsr import from_file, load, memmap, read_header, save

READERS = pytest.mark.parametrize("read", [load, read_header, memmap, from_file])
OTHER = np.arange(4, dtype=np.int16)
FORMS: list[dict[str, Any]] = [{}, {"version": 1}, {"version": 0}, {"checksum": True}]


def forms() -> list[Any]:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        return FORMS
    return [*FORMS, {"key": bytes(32)}]


@pytest.fixture
def umask() -> Iterator[int]:
    """The strictest one."""
    before = os.umask(0o777)
    yield 0o777
    os.umask(before)


# -- permissions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", forms(), ids=str)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666, 0o777, 0o444, 0o000])
def test_a_save_keeps_the_permissions_that_the_file_had_whatever_the_umask(
    path: Path, umask: int, mode: int, options: dict[str, Any]
) -> None:
    path.touch()
    path.chmod(mode)
    save(path, ARRAY, **options)
    assert path.stat().st_mode & 0o7777 == mode
    save(path, ARRAY.T, **options)  # strided: written in another way
    assert path.stat().st_mode & 0o7777 == mode


def test_a_save_keeps_no_set_user_id_and_no_sticky_bit(path: Path) -> None:
    path.touch()
    path.chmod(0o7755)
    save(path, ARRAY)
    assert path.stat().st_mode & 0o7777 == 0o755


def test_a_save_through_a_symlink_keeps_the_permissions_of_the_file_that_it_leads_to(path: Path, umask: int) -> None:
    path.touch()
    path.chmod(0o664)
    link = path.with_name("link")
    link.symlink_to(path.name)
    save(link, ARRAY)
    assert path.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_that_open_would_give_it(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        path.with_name("other").touch()
        save(path, ARRAY)
    finally:
        os.umask(before)
    assert path.stat().st_mode == path.with_name("other").stat().st_mode


def test_where_permissions_cannot_be_changed_and_need_not_be_a_save_works(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT, where every file has the permissions of the mount."""
    save(path, ARRAY)
    monkeypatch.setattr("tr_mmap.base.system.files.os.fchmod", None)
    path.chmod(0o644)
    before = os.umask(0o022)
    try:
        save(path, -ARRAY)
    finally:
        os.umask(before)
    assert bits(load(path)) == bits(-ARRAY)


def test_another_hard_link_keeps_the_old_content(path: Path) -> None:
    save(path, ARRAY)
    other = path.with_name("other")
    os.link(path, other)
    save(path, OTHER)
    assert (bits(load(path)), bits(load(other))) == (bits(OTHER), bits(ARRAY))
    assert (path.stat().st_nlink, other.stat().st_nlink) == (1, 1)


# -- slashes, dots, nothing -------------------------------------------------------------------------------------------


def test_a_name_that_ends_in_a_slash_is_no_file(path: Path) -> None:
    for name in (f"{path}/", f"{path}//", os.fsencode(path) + b"/"):
        with pytest.raises(IsADirectoryError) as caught:
            save(name, ARRAY)
        assert caught.value.errno == errno.EISDIR
        with pytest.raises(IsADirectoryError):
            open(name, "wb").close()
    assert names(path.parent) == []


@READERS
def test_a_file_with_a_slash_at_its_end_is_no_directory(path: Path, read: Any) -> None:
    save(path, ARRAY)
    for action in (lambda: read(f"{path}/"), lambda: save(f"{path}/", OTHER), lambda: save(f"{path}/x", OTHER)):
        with pytest.raises(NotADirectoryError):
            action()
    assert bits(load(path)) == bits(ARRAY)
    assert names(path.parent) == ["x.tsr"]


@READERS
def test_a_directory_is_refused_with_advice_for_a_directory(path: Path, read: Any, monkeypatch: Any) -> None:
    path.mkdir()
    monkeypatch.chdir(path)
    for name in (path, f"{path}/", f"{path}/.", f"{path}/..", ".", "..", "/"):
        for action in (lambda name=name: read(name), lambda name=name: save(name, ARRAY)):
            with pytest.raises(HostilePath, match="is a directory; give the path of a file"):
                action()
    assert names(path) == []


@pytest.mark.parametrize("name", ["no/x.tsr", "no/", "no/../x.tsr", "no/."])
def test_below_a_directory_that_is_not_there_is_no_file(path: Path, name: str) -> None:
    expected = IsADirectoryError if name == "no/" else FileNotFoundError
    with pytest.raises(expected):
        save(path.parent / "none" / name if name == "no/." else f"{path.parent}/{name}", ARRAY)
    assert names(path.parent) == []


@READERS
@pytest.mark.parametrize("empty", ["", b""])
def test_an_empty_path_is_no_file(tmp_path: Path, monkeypatch: Any, read: Any, empty: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for action in (lambda: read(empty), lambda: save(empty, ARRAY)):
        with pytest.raises(FileNotFoundError):
            action()
    assert names(tmp_path) == []


@READERS
@pytest.mark.parametrize("name", ["a\0b", b"a\0b"])
def test_a_path_with_a_null_is_refused_as_open_does(tmp_path: Path, monkeypatch: Any, read: Any, name: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for action in (lambda: read(name), lambda: save(name, ARRAY), lambda: open(name, "rb").close()):
        with pytest.raises(ValueError, match="null"):
            action()
    assert names(tmp_path) == []


@READERS
@pytest.mark.parametrize("thing", [3, None, 1.5, ["x"], bytearray(b"x")], ids=repr)
def test_what_is_no_path_is_a_type_error(read: Any, thing: Any) -> None:
    for action in (lambda: read(thing), lambda: save(thing, ARRAY)):
        with pytest.raises(TypeError):
            action()


class BytesPath:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


@pytest.mark.parametrize("kind", [os.fsencode, BytesPath], ids=["bytes", "path-like of bytes"])
@pytest.mark.parametrize("options", forms(), ids=str)
def test_a_path_may_be_bytes(path: Path, kind: Any, options: dict[str, Any]) -> None:
    save(kind(path), ARRAY, **options)
    key = {"key": options["key"]} if "key" in options else {}
    assert bits(load(kind(path), **key)) == bits(ARRAY)
    assert read_header(kind(path), **key).payload_nbytes == ARRAY.nbytes
    assert names(path.parent) == ["x.tsr"]


def test_dots_in_the_middle_are_followed_as_the_kernel_does(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    save(f"{tmp_path}/link/../x.tsr", ARRAY)  # the text alone would mean tmp_path/x.tsr
    assert names(tmp_path / "real") == ["deep", "x.tsr"]
    assert names(tmp_path) == ["link", "real"]


# -- what an error names ----------------------------------------------------------------------------------------------


def test_an_error_of_a_save_names_the_users_file_not_the_temporary_one(path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:  # as root may write everywhere
        patch.setattr(files.os, "open", refuse(errno.EACCES))
        with pytest.raises(PermissionError) as denied:
            save(path, ARRAY)
    with monkeypatch.context() as patch:
        patch.setattr(dirents.os, "replace", refuse(errno.EPERM))
        with pytest.raises(PermissionError) as not_renamed:
            save(path, ARRAY)
    gone = path.parent / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError) as nowhere:
        save("x.tsr", ARRAY)
    with pytest.raises(FileNotFoundError) as no_directory:
        save(path.parent / "none" / "x.tsr", ARRAY)
    for caught, name in ((denied, path), (not_renamed, path), (nowhere, "x.tsr"), (no_directory, path.parent / "none")):
        assert caught.value.filename == str(name)
        assert ".tmp" not in str(caught.value)
    assert names(path.parent) == []


@pytest.mark.parametrize("options", forms(), ids=str)
def test_too_many_open_files_in_a_save_name_the_users_file(path: Path, options: dict[str, Any]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(SystemLimit) as caught:
            save(path, ARRAY, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert str(caught.value).startswith(f"{path}: Too many open files")


def test_a_symlink_that_leads_to_a_name_with_a_slash_names_where_it_leads(path: Path) -> None:
    path.symlink_to(f"{path.parent}/none/")
    with pytest.raises(IsADirectoryError, match=f"the symlink leads to '{path.parent}/none/'") as caught:
        save(path, ARRAY)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("name", ["/proc/self/status", "/proc/self/new.tsr", "/proc/new.tsr"])
def test_where_no_file_can_be_made_the_error_does_not_say_that_there_is_none(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no file can be made in this directory") as caught:
        save(name, ARRAY)
    assert caught.value.filename == os.path.dirname(name)


def test_a_first_key_at_the_limit_of_open_files_is_that_limit_and_works_later(path: Path) -> None:
    pytest.importorskip("cryptography")
    script = """
import resource, sys
import numpy as np
from tr_mmap import SystemLimit, save
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
try:
    save(sys.argv[1], np.ones(3), key=bytes(32))
except SystemLimit as error:
    print(error.limit, "cryptography" in str(error), "__init__" in str(error))
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
save(sys.argv[1], np.ones(3), key=bytes(32))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "RLIMIT_NOFILE True False\n"
    assert load(path, key=bytes(32)).tolist() == [1, 1, 1]


def refuse(code: int) -> Any:
    def call(path: str, *_: Any, **__: Any) -> int:
        raise OSError(code, os.strerror(code), path)

    return call


# -- symlinks ---------------------------------------------------------------------------------------------------------


def test_a_save_through_a_dangling_symlink_makes_the_file(path: Path) -> None:
    first, second = path.with_name("first"), path.with_name("second")
    first.symlink_to("second")
    second.symlink_to(path)
    save(first, ARRAY)
    assert first.is_symlink()
    assert second.is_symlink()
    assert bits(load(first)) == bits(load(path)) == bits(ARRAY)


def test_a_symlink_that_ends_in_a_slash_makes_no_file(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to("x.tsr/")
    with pytest.raises(IsADirectoryError):
        save(link, ARRAY)
    assert names(path.parent) == ["link"]


@READERS
def test_symlinks_in_a_circle_are_refused_as_open_does(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for action in (lambda: read(tmp_path / "a"), lambda: save(tmp_path / "a", ARRAY)):
        with pytest.raises(OSError, match="symbolic links") as caught:
            action()
        assert caught.value.errno == errno.ELOOP
    assert names(tmp_path) == ["a", "b"]


def test_a_name_as_long_as_names_can_be_is_saved(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    save(path, ARRAY)
    assert bits(load(path)) == bits(ARRAY)
    with pytest.raises(OSError, match="too long"):
        save(tmp_path / ("x" * 256), ARRAY)


# -- links of /proc ---------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@linux
def test_a_file_that_was_removed_is_overwritten_in_place_and_gets_no_name(path: Path) -> None:
    save(path, ARRAY)
    fd = os.open(path, os.O_RDWR)
    path.unlink()
    save(f"/proc/self/fd/{fd}", OTHER)
    assert bits(load(f"/proc/self/fd/{fd}")) == bits(OTHER)
    assert names(path.parent) == []
    path.with_name("x.tsr (deleted)").write_bytes(b"another")  # what the link's text says
    save(f"/proc/self/fd/{fd}", ARRAY)
    assert bits(load(f"/proc/self/fd/{fd}")) == bits(ARRAY)
    assert path.with_name("x.tsr (deleted)").read_bytes() == b"another"
    os.close(fd)


@linux
def test_a_file_that_another_one_has_replaced_is_what_the_descriptor_says(path: Path) -> None:
    save(path, ARRAY)
    fd = os.open(path, os.O_RDWR)
    path.rename(path.with_name("moved"))
    save(path, ARRAY)
    save(f"/proc/self/fd/{fd}", OTHER)
    assert bits(load(path.with_name("moved"))) == bits(OTHER)
    assert bits(load(path)) == bits(ARRAY)
    os.close(fd)


@linux
def test_a_descriptor_of_a_file_with_a_name_replaces_that_file(path: Path) -> None:
    save(path, ARRAY)
    fd = os.open(path, os.O_RDONLY)
    save(f"/proc/self/fd/{fd}", OTHER)
    assert bits(load(path)) == bits(OTHER)
    assert names(path.parent) == ["x.tsr"]
    os.close(fd)


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its root")
def test_the_root_of_another_process_is_that_processs_own(tmp_path: Path) -> None:
    """The kernel follows such a link to where that process lives; its text says ``/`` all the same."""
    (tmp_path / "jail").mkdir()
    script = "import os, sys; os.chroot('jail'); print('in', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        save(f"/proc/{process.pid}/root/tr_mmap_test.tsr", ARRAY)
        save(f"/proc/{process.pid}/root/tr_mmap_test.tsr", OTHER)
        assert bits(load(f"/proc/{process.pid}/root/tr_mmap_test.tsr")) == bits(OTHER)
    assert names(tmp_path / "jail") == ["tr_mmap_test.tsr"]
    assert not os.path.exists("/tr_mmap_test.tsr")


@linux
@pytest.mark.parametrize(
    "make", [lambda: os.pipe()[0], lambda: os.open("/dev/null", os.O_RDWR)], ids=["pipe", "device"]
)
def test_a_descriptor_of_what_is_no_file_is_refused(make: Any) -> None:
    fd = make()
    for action in (lambda: save(f"/proc/self/fd/{fd}", ARRAY), lambda: load(f"/proc/self/fd/{fd}")):
        with pytest.raises(HostilePath, match="is not a regular file"):
            action()
    os.close(fd)


@linux
def test_a_descriptor_that_is_not_there_is_no_file() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    for action in (lambda: save(f"/proc/self/fd/{fd}", ARRAY), lambda: load(f"/proc/self/fd/{fd}")):
        with pytest.raises((FileNotFoundError, PermissionError)):
            action()


@linux
def test_standard_output_is_saved_to_where_it_leads(path: Path) -> None:
    script = "import numpy as np, tr_mmap; tr_mmap.save('/dev/stdout', np.arange(4, dtype=np.int16))"
    with open(path, "wb") as output:
        subprocess.run([sys.executable, "-c", script], stdout=output, env=environment(), check=True)
    assert bits(load(path)) == bits(OTHER)


def test_a_file_that_others_replace_at_the_same_time_is_replaced_not_overwritten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two looks at a symlink's file, the name may come to lead to another one."""
    save(path, ARRAY)
    link = path.with_name("link")
    link.symlink_to(path.name)
    original = dirents._follow

    def replace_then_follow(name: str) -> Any:
        save(path, -ARRAY)
        return original(name)

    old = load(path)
    with monkeypatch.context() as patch:
        patch.setattr(
            dirents, "_follow", lambda name: original(name) if name != str(link) else replace_then_follow(name)
        )
        save(link, OTHER)
    assert bits(load(path)) == bits(OTHER)
    assert bits(old) == bits(ARRAY)
    assert link.is_symlink()


# -- the current directory changes, or is closed ----------------------------------------------------------------------


def _moving(places: list[Path], stop: threading.Event) -> None:
    while not stop.is_set():
        for place in places:
            os.chdir(place)


@pytest.mark.each_value
@pytest.mark.parametrize("options", [{}, {"version": 1}, {"key": bytes(32)}, {"checksum": True}])
@pytest.mark.parametrize("name", ["rel.tsr", "./rel.tsr", "../b/rel.tsr", "link.tsr", "part/rel.tsr"])
def test_a_relative_path_is_resolved_once_by_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        (place / "part").mkdir(parents=True)
        (place / "link.tsr").symlink_to("part/linked.tsr")
    monkeypatch.chdir(tmp_path / "a")
    stop = threading.Event()
    mover = threading.Thread(target=_moving, args=(places, stop))
    mover.start()
    try:
        for _ in range(150):
            save(name, ARRAY, **options)
    finally:
        stop.set()
        mover.join()
    files = [each for each in tmp_path.rglob("*") if each.is_file() and not each.is_symlink()]
    assert files
    for each in files:
        assert each.name in ("rel.tsr", "linked.tsr")
        assert load(each, key=options.get("key")).tolist() == ARRAY.tolist()
    assert all((place / "link.tsr").is_symlink() for place in places)


def test_a_change_of_directory_in_the_middle_of_a_save_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    for step in ("replacement_of", "create_file", "write_all", "rename"):
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path / "here")
            call = getattr(system, step)

            def moves_first(*given: Any, call: Any = call, **named: Any) -> Any:
                os.chdir(tmp_path / "there")
                return call(*given, **named)

            patch.setattr(system, step, moves_first)
            save("x.tsr", ARRAY)
        assert names(tmp_path / "here") == ["x.tsr"]
        assert names(tmp_path / "there") == []
        (tmp_path / "here" / "x.tsr").unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_relative_path_is_saved_where_only_the_current_directory_may_be_used(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "here").mkdir(parents=True)
    os.chown(closed / "here", 65534, 65534)
    closed.chmod(0o700)
    code = (
        "import os, sys, numpy as np, tr_mmap\ntr_mmap.save, tr_mmap.load\n"
        "os.chdir(sys.argv[1])\nos.setresuid(65534, 65534, 65534)\n"
        "tr_mmap.save('x.tsr', np.ones(3))\nprint(tr_mmap.load('x.tsr').tolist())\n"
    )
    done = run_python("-c", code, str(closed / "here"))
    assert done.stdout == "[1.0, 1.0, 1.0]\n", done.stderr
    assert names(closed / "here") == ["x.tsr"]


def test_a_relative_path_is_saved_far_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(25):  # 5,000 bytes; a path from the root may have 4,095
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    save("x.tsr", ARRAY)
    assert load("x.tsr").tolist() == ARRAY.tolist()
    assert os.listdir() == ["x.tsr"]


# -- errors name the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"version": 0}, {"key": bytes(32)}, {"checksum": True}])
@pytest.mark.parametrize("make", [lambda: np.ones((600, 600)), lambda: np.ones((600, 600)).T], ids=["C", "Fortran"])
def test_a_file_that_may_not_be_that_large_is_named(path: Path, make: Any, options: dict[str, Any]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fd = os.memfd_create("")
    try:
        for name in (str(path), os.path.relpath(path), f"/proc/self/fd/{fd}"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
            with pytest.raises(SystemLimit) as caught:
                save(name, make(), **options)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert caught.value.limit == "RLIMIT_FSIZE"
            assert (name if name.startswith("/") else str(path.name)) in str(caught.value)
            assert ".tmp" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.close(fd)
    assert names(path.parent) == []


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
def test_a_write_that_fails_names_the_users_file(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fails(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(OSError, match=r"x\.tsr'$") as caught:
        save(path, ARRAY)
    assert (caught.value.errno, caught.value.filename) == (code, str(path))


@pytest.mark.parametrize("name", ["/proc/self/mem", "//etc/../proc/self/mem", b"/proc/self/mem"])
def test_a_file_that_cannot_be_read_is_named(name: Any) -> None:
    for read in (load, read_header, memmap, from_file, lambda path: load(path, key=bytes(32))):
        with pytest.raises(OSError, match=r"Input/output error: '.*/proc/self/mem'") as caught:
            read(name)
        assert caught.value.filename == os.fsdecode(name)


def test_what_maps_a_sealed_file_is_told_what_reads_one(path: Path) -> None:
    save(path, ARRAY, key=bytes(32))
    for read in (load, read_header, memmap, from_file):
        with pytest.raises(TSRFormatError, match=r"cannot be mapped; load and read_header with the key") as caught:
            read(path)
        assert caught.value.fault is Fault.SEALED
