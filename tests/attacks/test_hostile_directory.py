"""A hostile directory is refused: whatever lies where a session's own files should, there is a typed error.

And what is ours is ours alone: directories 0700, files 0600, whatever the umask.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile
import numpy as np
import pytest
from hostile import Spoil
from support import SHM, TOOLS, open_files, wait_until

from tr_mmap import (
    BadMessage,
    BadTag,
    HostilePath,
    PythonSession,
    SessionNotStarted,
    StaleTensor,
    TRException,
    TSRFormatError,
    load,
    sweep,
)
from tr_mmap.channel.doorbell import Doorbell
from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.processes.identity import Identity
from tr_mmap.protocol.messages import TensorRef
from tr_mmap.sessions import manifest as manifests
from tr_mmap.sessions.manifest import Manifest
from tr_mmap.sessions.workspace import Workspace
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.wire.segments import HEAD_NBYTES
from tr_mmap.worker.server import TechRenaissanceServer

LIAR = Path(__file__).with_name("liar.py")
NAME = lambda spoil: spoil.__name__  # noqa: E731
on_tmpfs = pytest.mark.skipif(not SHM.is_dir(), reason="holes harm on tmpfs alone, and there is none")
as_root = pytest.mark.skipif(not hostile.IS_ROOT, reason="NOT TESTED: only root can give a file away")


def tree(path: Path) -> dict[str, tuple[int, int]]:
    """Every name below, and what it is: a refusal must not have changed anything."""
    return {str(each): (each.lstat().st_mode, each.lstat().st_size) for each in sorted(path.rglob("*"))}


@pytest.fixture
def place(workspace: Path) -> Iterator[Path]:
    """The directory of a session that this process has claimed, with control files in it."""
    owner = Workspace.locate()
    directory = owner.claim("s", Manifest(session_id="s", controller=Identity.current()))
    channel = MappedChannel.create(directory)
    manifest = Manifest(session_id="s", controller=Identity.current(), doorbells=channel.doorbells)
    manifests.write(directory, manifest)
    yield Path(directory)
    channel.close()
    hostile._remove(workspace)
    workspace.mkdir()


def join() -> None:
    """What a worker does first."""
    server = TechRenaissanceServer()
    try:
        server.setup_session_dir("s")
    finally:
        server.cleanup_session_dir()


def test_the_place_of_these_tests_is_fine_before_it_is_spoiled(place: Path) -> None:
    join()


# -- directories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", hostile.INSTEAD_OF_A_DIRECTORY, ids=NAME)
@pytest.mark.parametrize("level", ["session", "sessions"])
def test_a_worker_refuses_a_hostile_directory(place: Path, spoil: Spoil, level: str) -> None:
    spoil(place if level == "session" else place.parent)
    before = tree(place.parent)
    is_there = spoil in (hostile.symlink, hostile.group_writable, hostile.world_writable, hostile.foreign_owned)
    with pytest.raises(HostilePath if is_there else (HostilePath, SessionNotStarted)):
        join()
    assert tree(place.parent) == before


@pytest.mark.parametrize("spoil", hostile.INSTEAD_OF_A_DIRECTORY, ids=NAME)
def test_a_session_refuses_a_hostile_directory_of_sessions(place: Path, spoil: Spoil) -> None:
    spoil(place.parent)
    before = tree(place.parent)
    with pytest.raises(HostilePath):
        PythonSession(session_id="other").start()
    with pytest.raises(HostilePath):
        sweep()
    assert tree(place.parent) == before


@pytest.mark.parametrize("spoil", hostile.INSTEAD_OF_A_DIRECTORY, ids=NAME)
def test_a_session_refuses_a_hostile_session_directory(place: Path, spoil: Spoil) -> None:
    spoil(place)
    before = tree(place.parent)
    with pytest.raises(TRException):
        PythonSession(session_id="s").start()
    assert tree(place.parent) == before


@pytest.mark.parametrize("spoil", [hostile.group_writable, hostile.world_writable], ids=NAME)
def test_a_session_does_not_start_again_in_a_directory_that_was_opened_to_others(spoil: Spoil) -> None:
    with PythonSession(quiet_mode=True) as session:
        session.terminate()
        session.join()
        directory = Path(session.session_dir())
        spoil(directory)
        with pytest.raises(HostilePath):
            session.start()
        directory.chmod(0o700)
        session.start()
        assert session.fetch_response("hello again") == "Hello Again"


@pytest.mark.parametrize(
    "spoil",
    [hostile.group_writable, hostile.world_writable, pytest.param(hostile.foreign_owned, marks=as_root)],
    ids=NAME,
)
def test_a_chosen_workspace_in_which_others_could_swap_our_directories_is_refused(
    workspace: Path, spoil: Spoil
) -> None:
    spoil(workspace)
    with pytest.raises(HostilePath, match="TR_WORKSPACE"):
        Workspace.locate()
    assert os.listdir(workspace) == []


def test_a_chosen_workspace_may_be_sticky_like_tmp(workspace: Path) -> None:
    workspace.chmod(0o1777)
    assert Workspace.locate().root == str(workspace)


# -- the manifest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", hostile.INSTEAD_OF_A_FILE, ids=NAME)
def test_a_hostile_manifest_is_refused_by_the_worker_and_never_swept(place: Path, spoil: Spoil) -> None:
    spoil(place / "session.json")
    before = tree(place)
    with pytest.raises(HostilePath):
        join()
    assert sweep().removed == []
    assert tree(place) == before


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("channel", "nope"),
        ("channel", "../mapped"),
        ("doorbells", []),
        ("doorbells", ["/tr_1_a_q"]),
        ("doorbells", ["/tr_1_a_q"] * 3),
        ("doorbells", ["/../../etc/passwd", "/tr_\0"]),
        ("doorbells", ["", "x" * 10_000]),
        ("controller", {"pid": 0, "start_ticks": 0, "boot_id": ""}),
        ("controller", {"pid": 2**70, "start_ticks": 0, "boot_id": ""}),
        ("controller", {"pid": 1, "start_ticks": -1, "boot_id": ""}),
        ("controller", []),
        ("store", "yes"),
        ("doorbells", {"0": "/tr_a"}),
    ],
)
def test_a_manifest_with_hostile_values_is_a_typed_error(place: Path, member: str, value: object) -> None:
    path = place / "session.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), member: value}))
    with pytest.raises(TRException):
        join()
    sweep()


# -- control files --------------------------------------------------------------------------------------------------

MAPPED_FILES = ["requests.ring", "responses.ring", "status.page"]
CONTROL_FILES = ["request.json", "response.json", "status.txt"]


@pytest.mark.parametrize("spoil", [*hostile.INSTEAD_OF_A_FILE, pytest.param(hostile.sparse, marks=on_tmpfs)], ids=NAME)
@pytest.mark.parametrize("name", MAPPED_FILES)
def test_a_worker_refuses_a_hostile_mapped_file(place: Path, name: str, spoil: Spoil) -> None:
    spoil(place / name)
    with pytest.raises(HostilePath) as caught:
        join()
    assert caught.value.path == str(place / name)


def is_own_log(path: Path) -> bool:
    """Whether this is a worker's log, and leads to a private file of ours in a directory for temporary files."""
    if path.name != "worker.log" or not re.fullmatch(r"/.+/tr_mmap-log-[0-9a-f]{32}", target := os.readlink(path)):
        return False
    info = os.lstat(target)
    return stat.S_ISREG(info.st_mode) and stat.S_IMODE(info.st_mode) == 0o600 and info.st_uid == os.geteuid()


@pytest.mark.each_value
@pytest.mark.parametrize("channel", ["mapped", "files"])
@pytest.mark.parametrize("in_the_way", hostile.IN_THE_WAY, ids=NAME)
def test_what_lies_in_a_control_files_way_is_replaced_or_refused_and_never_written_through(
    channel: str, in_the_way: Spoil
) -> None:
    with PythonSession(quiet_mode=True, channel=channel) as session:
        session.terminate()
        session.join()
        names = [*CONTROL_FILES, *(MAPPED_FILES if channel == "mapped" else []), "worker.log"]
        mirrors = CONTROL_FILES if channel == "mapped" else []  # no session fails for want of these
        paths = [Path(session.session_dir()) / name for name in names]
        for path in paths:
            in_the_way(path)
            if in_the_way is hostile.directory and path.name in mirrors:
                session.start()
                assert session.fetch_response("hello again") == "Hello Again"
                session.terminate()
                path.rmdir()
            elif in_the_way is hostile.directory:
                with pytest.raises(HostilePath):
                    session.start()
                path.rmdir()
        session.start()
        assert session.fetch_response("hello again") == "Hello Again"
        for path in paths:
            if path.name in mirrors:
                wait_until(path.is_file)
            assert not path.exists() or stat.S_ISREG(path.lstat().st_mode) or is_own_log(path)
    assert not os.path.lexists("/nowhere")


@pytest.mark.parametrize(
    "spoil",
    [hostile.group_writable, hostile.world_writable, pytest.param(hostile.foreign_owned, marks=as_root)],
    ids=NAME,
)
@pytest.mark.skipif(not SHM.is_dir(), reason="semaphores have no files here")
def test_a_hostile_doorbell_is_refused(place: Path, spoil: Spoil) -> None:
    bell = Doorbell.create("/tr_1_hostile_q")
    try:
        spoil(SHM / "sem.tr_1_hostile_q")
        with pytest.raises(HostilePath):
            Doorbell.open(bell.name)
    finally:
        bell.unlink()
        bell.close()


# -- segments -------------------------------------------------------------------------------------------------------


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[tuple[Path, TensorRef]]:
    pool = SegmentPool(str(tmp_path), "segment")
    published = pool.publish(np.arange(10_000.0))
    yield tmp_path / published.name, TensorRef("a", published.name, published.seq)
    pool._segments.clear()


@pytest.mark.parametrize("spoil", [*hostile.INSTEAD_OF_A_FILE], ids=NAME)
def test_a_hostile_segment_is_refused(segment: tuple[Path, TensorRef], spoil: Spoil) -> None:
    path, ref = segment
    spoil(path)
    before = open_files().total()
    with pytest.raises(HostilePath):
        SegmentReader(str(path.parent)).receive(ref.segment, ref.seq, "numpy", ref.tag)
    assert open_files().total() == before


@on_tmpfs
def test_a_segment_with_holes_is_refused_before_a_page_of_it_is_touched(workspace: Path) -> None:
    path = workspace / "segment_0.tsr"
    pool = SegmentPool(str(workspace), "segment")
    published = pool.publish(np.zeros(10_000))
    ref = TensorRef("a", published.name, published.seq)
    head = path.read_bytes()[:HEAD_NBYTES]
    path.unlink()
    path.write_bytes(head)
    path.chmod(0o600)
    os.truncate(path, 2**40)
    with pytest.raises(HostilePath, match="holes"):
        SegmentReader(str(workspace)).receive(ref.segment, ref.seq, "numpy", ref.tag)
    assert path.stat().st_blocks * 512 == HEAD_NBYTES
    path.unlink()


@pytest.mark.parametrize("nbytes", [0, 100, HEAD_NBYTES - 1, HEAD_NBYTES, HEAD_NBYTES + 79_999])
def test_a_segment_that_is_too_short_is_refused(segment: tuple[Path, TensorRef], nbytes: int) -> None:
    path, ref = segment
    raw = path.read_bytes()
    path.unlink()  # not truncated: this process has it mapped
    path.write_bytes(raw[:nbytes])
    path.chmod(0o600)
    with pytest.raises((StaleTensor, TSRFormatError)):
        SegmentReader(str(path.parent)).receive(ref.segment, ref.seq, "numpy", ref.tag)


@pytest.mark.parametrize("in_the_way", hostile.IN_THE_WAY, ids=NAME)
def test_what_lies_in_a_new_segments_way_is_refused_and_not_written_through(tmp_path: Path, in_the_way: Spoil) -> None:
    in_the_way(tmp_path / "segment_0.tsr")
    before = tree(tmp_path)
    with pytest.raises(HostilePath):
        SegmentPool(str(tmp_path), "segment").publish(np.zeros(3))
    assert tree(tmp_path) == before
    assert not os.path.lexists("/nowhere")


@pytest.mark.parametrize("in_the_way", hostile.IN_THE_WAY, ids=NAME)
def test_what_lies_in_a_tags_way_is_replaced_or_refused_and_not_written_through(
    mapped: PythonSession, in_the_way: Spoil
) -> None:
    path = Path(mapped.session_dir()) / "a.tsr"
    in_the_way(path)
    if in_the_way is hostile.directory:
        with pytest.raises(HostilePath):
            mapped.send_tensor(np.arange(3.0), "a")
        mapped.send_tensor(np.arange(4.0), "b")  # whatever is wrong with one tag, the others go on
        assert mapped.fetch_tensor("echo b").tolist() == mapped.calculate("echo", np.arange(4.0)).tolist()
        mapped.drop_tensor("b")
        path.rmdir()
    mapped.send_tensor(np.arange(3.0), "a")
    assert mapped.fetch_tensor("echo a").tolist() == load(path).tolist() == [0, 1, 2]
    mapped.drop_tensor("a")
    assert not os.path.lexists("/nowhere")


# -- names that escape ----------------------------------------------------------------------------------------------

ESCAPES = [
    "../a", "/a", "a/b", "a/../b", ".", "..", "", ".a", "a\0b", "\0", "a\nb", "a b", "ä", "\u202e", "a" * 129, "~",
]  # fmt: skip


@pytest.mark.parametrize("tag", ESCAPES)
def test_a_tag_that_escapes_is_refused_and_makes_no_file(mapped: PythonSession, tag: str) -> None:
    before = set(os.listdir(mapped.session_dir()))
    with pytest.raises(BadTag):
        mapped.send_tensor(np.zeros(2), tag)
    assert set(os.listdir(mapped.session_dir())) == before


@pytest.fixture(scope="module")
def liar() -> Iterator[PythonSession]:
    from support import empty_place

    with empty_place() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TR_WORKSPACE", str(path))
        with PythonSession(LIAR, quiet_mode=True) as session:
            patch.undo()
            yield session


SEGMENT_ESCAPES = [
    *(f"{each}.tsr" for each in ESCAPES if each not in ("..", "a" * 129)),
    "a" * 300 + ".tsr",
    "segment_0",
]


@pytest.mark.parametrize("name", SEGMENT_ESCAPES)
def test_a_response_that_names_a_segment_elsewhere_is_refused(liar: PythonSession, name: str) -> None:
    outside = Path(liar.session_dir()).parent / "outside.tsr"
    with pytest.raises((BadMessage, StaleTensor)):
        liar.fetch_tensor("point " + json.dumps([name, 1]))
    assert not outside.exists()
    assert liar.calculate("echo", np.arange(2.0)).tolist() == [0, 1]


@pytest.mark.parametrize("seq", [0, 10**6, -1, 2**63, 2**64 - 1, 2**64, 2**200])
def test_a_response_that_names_a_number_that_is_not_there_is_refused(liar: PythonSession, seq: int) -> None:
    kept = liar.calculate("echo", np.arange(2.0))
    result = next(name for name in os.listdir(liar.session_dir()) if name.startswith("result_"))
    with pytest.raises((StaleTensor, BadMessage)):
        liar.fetch_tensor("point " + json.dumps([result, seq]))
    assert kept.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["request.json", "status.txt", "session.json", "worker.log"])
def test_a_response_that_names_another_of_our_files_is_refused(liar: PythonSession, name: str) -> None:
    before = (Path(liar.session_dir()) / name).stat().st_size
    with pytest.raises(BadMessage):
        liar.fetch_tensor("point " + json.dumps([name, 1]))
    assert (Path(liar.session_dir()) / name).stat().st_size == before


def test_a_response_that_names_a_plain_tensor_file_is_refused(liar: PythonSession, tmp_path: Path) -> None:
    from tr_mmap import save

    path = Path(liar.session_dir()) / "plain.tsr"
    save(path, np.zeros(2000))
    path.chmod(0o600)
    with pytest.raises(TSRFormatError):
        liar.fetch_tensor("point " + json.dumps(["plain.tsr", 1]))
    path.unlink()


# -- what is ours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_everything_a_session_makes_is_private_whatever_the_umask(workspace: Path, channel: str) -> None:
    seen: dict[str, int] = {}

    def look() -> None:
        for path in workspace.rglob("*"):
            try:
                mode = stat.S_IMODE(path.lstat().st_mode)
            except FileNotFoundError:  # a long message, whose reader has removed it meanwhile
                assert path.suffix == ".spill", path
                continue
            seen[path.name] = mode
            if path.is_symlink():
                assert is_own_log(path), path
                continue
            assert mode == (0o700 if path.is_dir() else 0o600), path
        for path in SHM.glob(f"sem.tr_{os.getpid()}_*"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path

    previous = os.umask(0)
    try:
        session = PythonSession(TOOLS, quiet_mode=True, channel=channel)
        session.start()
        look()
        with_session(session, look)
    finally:
        os.umask(previous)
    assert {"tr_session_default", "session.json", "status.txt", "worker.log", "segment_0.tsr", "a.tsr"} <= set(seen)


def with_session(session: PythonSession, look: Callable[[], None]) -> None:
    try:
        assert session.wait_until_ready(60_000)
        session.send_tensor(np.zeros(5), "a")
        kept = session.fetch_tensor("echo a")
        look()
        session.send_request("say " + "x" * 100_000)
        look()
        assert len(session.wait_for_response()) == 100_000
        del kept
    finally:
        session.close()
