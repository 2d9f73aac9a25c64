"""Records that leave a store and come into another one are the same, or the command says which are not."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import lines, run
from typer.testing import CliRunner

from tr_mmap.cli import app
from tr_mmap.store import EmbedderMismatch, OptionMismatch, Store
from tr_mmap.store.embedders import Named
from tr_mmap.store.incoming import import_from, read_source
from tr_mmap.tsr.dtypes import TABLE, DType


def embed(texts: list[str]) -> Any:
    """The letters in each text."""
    return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


def test_what_is_exported_is_imported_bit_for_bit(place: Path) -> None:
    vectors = np.random.default_rng(1).random((1200, 8)).astype(np.float32)
    names = ["", "/", "a/b", "é", "__metadata__"]
    with Store("notes") as store:
        store.add_many({"content": f"text {n}", "vector": row, "user_id": "u"} for n, row in enumerate(vectors))
        store.add("no vector", id="__metadata__", metadata={"x": [None, 1.5]}, importance=0.25, ttl_s=1e6)
        store.add(id="3/", tensors={name: np.arange(4, dtype=np.int16) for name in names if name})
        store.add(id="scalars", tensors={"0": np.array(1.5), "none": np.zeros((0, 3), np.float16)})
        before = store.get_all()
    assert run("export", "notes", "out").stderr == "1203 records written to out\n"
    assert run("import", "again", "out").stderr == "1203 records added\n"
    with Store("again") as store:
        assert store.check() == []
        after = store.get_all()
        for old, new in zip(before, after, strict=True):
            for name in ("id", "content", "user_id", "metadata", "importance"):
                assert getattr(new, name) == getattr(old, name)
            assert (new.vector is None) == (old.vector is None)
            assert old.vector is None or old.vector.tobytes() == new.vector.tobytes()
            assert new.tensors.keys() == old.tensors.keys()
            for name, tensor in old.tensors.items():
                assert (new.tensors[name].dtype, new.tensors[name].shape) == (tensor.dtype, tensor.shape)
                assert new.tensors[name].tobytes() == tensor.tobytes()
        assert after[2].expires_at == pytest.approx(before[2].expires_at, abs=60)


def test_other_programs_read_what_is_exported(place: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    with Store("notes") as store:
        store.add("one", id="x", vector=[1, 2], tensors={"image": np.eye(2)})
    run("export", "notes", "out")
    found = safetensors.load_file("out/tensors.safetensors")
    assert {name: each.tolist() for name, each in found.items()} == {"vectors": [[1, 2]], "1/image": [[1, 0], [0, 1]]}
    line = json.loads(Path("out/records.jsonl").read_text())
    assert (line["content"], line["vector"], line["tensors"]) == ("one", 0, {"image": "1/image"})


def test_a_filter_says_what_is_exported(place: Path) -> None:
    for n in range(4):
        run("add", "notes", f"note {n}", "--id", n, "--metadata", json.dumps({"n": n}))
    run("export", "notes", "out", "--filter", '{"n": {"gte": 2}}')
    run("export", "notes", "one", "--filter", '{"id": "0"}')
    assert [json.loads(line)["id"] for line in Path("out/records.jsonl").read_text().splitlines()] == ["2", "3"]
    assert json.loads(Path("one/records.jsonl").read_text())["content"] == "note 0"


def test_lines_that_a_person_has_written_are_imported(place: Path) -> None:
    Path("notes.jsonl").write_text('{"content": "one", "vector": [1, 0]}\n\n{"content": "two", "user_id": "ada"}\n')
    assert run("import", "notes", "notes.jsonl").stderr == "2 records added\n"
    assert [each["content"] for each in lines("ls", "notes")] == ["two", "one"]


def test_lines_come_from_the_standard_input_and_may_begin_with_a_mark(place: Path) -> None:
    text = "\ufeff" + '{"content": "one\u2028two"}\r\n{"content": "three"}\r\n'
    Path("notes.jsonl").write_text(text, newline="")
    assert run("import", "notes", "notes.jsonl").stderr == "2 records added\n"
    assert run("import", "notes", "-", text=text).stderr == "2 records added\n"
    assert [each["content"] for each in lines("ls", "notes")] == ["three", "one\u2028two"] * 2


# -- the store's own settings -----------------------------------------------------------------------------------------


def test_an_import_makes_a_store_like_the_one_that_was_exported(place: Path) -> None:
    options: dict[str, Any] = {
        "metric": "l2",
        "dtype": "float16",
        "indexed": ("kind", "year"),
        "durability": "os",
        "budget_nbytes": 1_000_000,
        "at_budget": "evict",
    }
    embedder = Named("letters-1", embed)
    with Store("notes", embedder=embedder, **options) as store:
        store.add_many({"content": word, "metadata": {"kind": "word"}} for word in ("listen", "banana", "orange"))
    run("export", "notes", "out")
    run("import", "again", "out")
    with Store("again", embedder=embedder, **options) as store:  # any other option would be refused
        assert store.search("silent")[0].record.content == "listen"
        assert store.stats().budget_nbytes == 1_000_000
        assert store.check() == []
    noted = [json.loads(Path(each["directory"], "store.json").read_text()) for each in lines("ls")]
    assert [each.pop("name") for each in noted] == ["again", "notes"]
    assert noted[0] == noted[1]
    with pytest.raises(EmbedderMismatch):
        Store("again", embedder=Named("letters-2", embed), durability="os")


def test_an_export_of_nothing_keeps_what_the_store_is(place: Path) -> None:
    Store("notes", dim=3, metric="dot").close()
    run("export", "notes", "out")
    assert run("import", "again", "out").stderr == "0 records added\n"
    with pytest.raises(OptionMismatch, match="metric"):
        Store("again", metric="l2")


def test_vectors_of_another_embedder_are_not_imported(place: Path) -> None:
    for name in ("one", "two"):
        with Store(name, embedder=Named(name, embed)) as store:
            store.add(f"a text in {name}")
    run("export", "one", "out")
    assert "made by 'one', those of the store 'two' by 'two'" in run("import", "two", "out", status=1, said=2).stderr
    assert [each["content"] for each in lines("ls", "two")] == ["a text in two"]
    said = run("import", "new", "out", "--embed", status=1).stderr
    assert "made by 'one', those of the store 'new' by 'multilingual-e5-small-q4'" in said
    assert [each["name"] for each in lines("ls")] == ["one", "two"]


# -- whole, or not at all ---------------------------------------------------------------------------------------------


def exported(place: Path) -> Path:
    with Store("notes") as store:
        for n in range(3):
            store.add(f"text {n}", id=str(n), vector=[n, 1], tensors={"image": np.full(4, n)})
    run("export", "notes", "out")
    return place / "out"


def copied_tensors(out: Path) -> None:
    run("export", "notes", "other")
    shutil.copy("other/tensors.safetensors", out)


def cut_records(out: Path) -> None:
    path = out / "records.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))


def later_format(out: Path) -> None:
    note = json.loads((out / "store.json").read_text())
    (out / "store.json").write_text(json.dumps(note | {"format": 2}))


PARTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no tensors": (lambda out: (out / "tensors.safetensors").unlink(), "tensors.safetensors: No such file"),
    "no note": (lambda out: (out / "store.json").unlink(), "the export has not ended"),
    "no records": (lambda out: (out / "records.jsonl").unlink(), "records.jsonl: No such file"),
    "tensors of another export": (copied_tensors, "not of the same export"),
    "some of the records": (cut_records, "has 2 records, and 3 were exported"),
    "half the tensors": (
        lambda out: os.truncate(out / "tensors.safetensors", (out / "tensors.safetensors").stat().st_size - 1),
        "is cut",
    ),
    "no header": (lambda out: os.truncate(out / "tensors.safetensors", 5), "is cut"),
    "a later format": (later_format, "says format 2; this release reads 1"),
    "an empty note": (lambda out: os.truncate(out / "store.json", 0), "is not what an export has written"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_an_export_is_refused_and_no_store_is_made(place: Path, part: str) -> None:
    out = exported(place)
    hurt, text = PARTS[part]
    hurt(out)
    ended = CliRunner().invoke(app, ["store", "import", "again", "out"])
    assert ended.exit_code in (1, 2)
    assert text in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert [each["name"] for each in lines("ls")] == ["notes"]


def test_lines_whose_vectors_are_elsewhere_are_not_imported_without_them(place: Path) -> None:
    exported(place)
    assert "import the directory" in run("import", "again", "out/records.jsonl", status=2).stderr
    Path("one.jsonl").write_text('{"content": "x", "tensors": {"a": "1/a"}}')
    assert "'1/a' of tensors.safetensors" in run("import", "again", "one.jsonl", status=2).stderr
    assert [each["name"] for each in lines("ls")] == ["notes"]


def test_lines_may_be_changed_and_moved_between_export_and_import(place: Path) -> None:
    out = exported(place)
    path = out / "records.jsonl"
    texts = path.read_text().replace("text 0", "another text").splitlines(keepends=True)
    path.write_text("".join(reversed(texts)))
    run("import", "again", "out")
    with Store("again") as store:
        for n in range(3):
            record = store.get(str(n))
            assert record is not None
            assert record.content == (f"text {n}" if n else "another text")
            assert record.vector is not None
            assert record.vector.tolist() == [n, 1]
            assert record.tensors["image"].tolist() == [n] * 4


LATE: dict[str, tuple[str, int, str]] = {
    "no JSON": ("{", 2, "line 1201 is no record"),
    "an unknown field": ('{"contents": "x"}', 2, "line 1201: a record has no 'contents'"),
    "a vector of another size": ('{"vector": [1, 2, 3]}', 2, "line 1201: a vector has shape (3,)"),
    "no number": ('{"vector": ["a", "b"]}', 2, "line 1201: a vector is an array of real numbers"),
    "an id twice": ('{"id": "7"}', 2, "line 1201: the id '7' is that of line 8, too"),
    "an id that is taken": ('{"id": "old"}', 1, "line 1201: there is a record 'old'; nothing was added"),
}


@pytest.mark.parametrize("late", LATE)
def test_a_wrong_line_far_down_adds_nothing(place: Path, late: str) -> None:
    line, status, text = LATE[late]
    good = "".join(json.dumps({"id": str(n), "content": f"x {n}", "vector": [n, 1]}) + "\n" for n in range(1200))
    Path("notes.jsonl").write_text(good + line)
    with Store("notes") as store:
        store.add("there before", id="old")
    assert text in run("import", "notes", "notes.jsonl", status=status).stderr
    assert [each["id"] for each in lines("ls", "notes")] == ["old"]
    if status == 2:
        assert text in run("import", "new", "notes.jsonl", status=status).stderr
        assert [each["name"] for each in lines("ls")] == ["notes"]


def test_records_that_are_there_are_left_out_on_demand(place: Path) -> None:
    Path("notes.jsonl").write_text("".join(json.dumps({"id": str(n), "content": "new"}) + "\n" for n in range(1200)))
    with Store("notes") as store:
        store.add_many({"id": str(n), "content": "old"} for n in range(0, 1200, 3))
    assert "line 1: there is a record '0'" in run("import", "notes", "notes.jsonl", status=1).stderr
    ended = run("import", "notes", "notes.jsonl", "--skip-existing")
    assert ended.stderr == "800 records added, 400 were there\n"
    with Store("notes") as store:
        assert {each.id: each.content for each in store.get_all()} == {
            str(n): "new" if n % 3 else "old" for n in range(1200)
        }


def test_an_import_that_runs_out_of_room_says_what_is_in_and_can_go_on(place: Path) -> None:
    Path("notes.jsonl").write_text("".join(json.dumps({"id": str(n), "content": "x"}) + "\n\n" for n in range(1200)))
    Store("notes", budget_nbytes=700 * 513).close()
    said = run("import", "notes", "notes.jsonl", status=1).stderr
    assert "500 of 1200 records are in the store, those of the lines 1 to 999; import again with --skip-exist" in said
    with Store("notes", budget_nbytes=10_000_000) as store:
        assert store.stats().records == 500
        assert import_from(store, read_source(Path("notes.jsonl")), is_going_on=True) == (700, 500)
        assert sorted(each.id for each in store.get_all()) == sorted(map(str, range(1200)))


class Interrupted(Store):
    """Is interrupted when its second commit of many records has ended."""

    commits = 0

    def add_many(self, records: Any) -> list[str]:
        ids = super().add_many(records)
        self.commits += 1
        if self.commits == 2:
            raise KeyboardInterrupt
        return ids


def test_an_interrupt_after_a_commit_counts_that_commit(place: Path) -> None:
    Path("notes.jsonl").write_text('{"content": "x"}\n' * 1200)
    source = read_source(Path("notes.jsonl"))
    with Interrupted("notes") as store:
        with pytest.raises(KeyboardInterrupt) as caught:
            import_from(store, source)
        assert caught.value.__notes__[0].startswith(
            "1000 of 1200 records are in the store, those of the lines 1 to 1000"
        )
        assert store.stats().records == 1000


class Overtaken(Store):
    """Somebody else adds a record after it was seen that there is none."""

    commits = 0

    def add_many(self, records: Any) -> list[str]:
        self.commits += 1
        if self.commits == 2:
            with Store("notes") as other:
                other.add("theirs", id="700")
        return super().add_many(records)


def test_what_somebody_adds_meanwhile_is_left_out_too(place: Path) -> None:
    Path("notes.jsonl").write_text("".join(json.dumps({"id": str(n)}) + "\n" for n in range(1200)))
    source = read_source(Path("notes.jsonl"))
    with Overtaken("notes") as store:
        assert import_from(store, source, is_going_on=True) == (1199, 1)
        record = store.get("700")
        assert record is not None
        assert record.content == "theirs"


# -- every dtype ------------------------------------------------------------------------------------------------------


def bits(dtype: DType, *shape: int) -> np.ndarray[Any, Any]:
    """Any values, but of floats finite ones."""
    raw = np.random.default_rng(dtype.code).integers(0, 2, (*shape, dtype.itemsize), np.uint8)
    return raw.view(dtype.numpy).reshape(shape)


def test_tensors_of_every_dtype_are_exported_and_imported_bit_for_bit(place: Path) -> None:
    pytest.importorskip("ml_dtypes")
    tensors = {f"{dtype.name} {shape}": bits(dtype, *shape) for dtype in TABLE for shape in ((), (3,), (2, 0), (5, 3))}
    with Store("notes") as store:
        store.add(id="together", tensors=tensors)
        store.add_many({"id": name, "tensors": {"one": tensor}} for name, tensor in tensors.items())
        assert len(store.get_all()) == len(tensors) + 1
    run("export", "notes", "out")
    run("import", "again", "out")
    with Store("again") as store:
        for name, tensor in tensors.items():
            together, alone = store.get("together"), store.get(name)
            assert together is not None
            assert alone is not None
            for found in (together.tensors[name], alone.tensors["one"]):
                assert (found.dtype, found.shape, found.tobytes()) == (tensor.dtype, tensor.shape, tensor.tobytes())
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open("out/tensors.safetensors", "np") as file:
        for name in ("complex128 (5, 3)", "float8_e4m3fnuz (5, 3)", "bool (3,)"):
            assert file.get_tensor(f"1/{name}").tobytes() == tensors[name].tobytes()


@pytest.mark.parametrize("name", ["float64", "bfloat16", "float8_e4m3fnuz", "float8_e8m0fnu", "uint64"])
def test_vectors_of_every_dtype_are_exported_and_imported_bit_for_bit(place: Path, name: str) -> None:
    pytest.importorskip("ml_dtypes")
    with Store("notes", dtype=name) as store:
        store.add_many({"id": str(n), "vector": np.array([n, 1, 2, 4])} for n in range(1, 9))
        before = {each.id: each.vector for each in store.get_all()}
    run("export", "notes", "out")
    run("import", "again", "out")
    with Store("again", dtype=name) as store:
        for each in store.get_all():
            assert each.vector is not None
            assert each.vector.dtype == before[each.id].dtype
            assert each.vector.tobytes() == before[each.id].tobytes()


BROKEN = [
    b"",
    b"x" * 7,
    b"x" * 100,
    b"[]",
    b"{",
    b'{"1/": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}}',
    b'{"1/": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}',
    b'{"1/": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
    b'{"1/": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
    b'{"1/": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_file_of_tensors_is_one_line_and_adds_nothing(place: Path, content: bytes) -> None:
    exported(place)
    is_header = content[:1] in (b"[", b"{")
    Path("out/tensors.safetensors").write_bytes(
        len(content).to_bytes(8, "little") + content + bytes(16) if is_header else content
    )
    assert "no safetensors file" in run("import", "again", "out", status=2).stderr
    assert [each["name"] for each in lines("ls")] == ["notes"]


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_record_that_cannot_be_read_is_named_and_the_others_are_exported(place: Path) -> None:
    with Store("notes") as store:
        for n in range(5):
            store.add(f"text {n}", id=f"id-{n}", tensors={"image": np.full(4, n)})
        (place_of,) = [each["directory"] for each in lines("ls")]
        before = set(Path(place_of, "tensors").iterdir())
        store.add("hurt", id="hurt", tensors={"image": np.zeros(4)}, vector=[1, 2])
        (file,) = set(Path(place_of, "tensors").iterdir()) - before
        store.add("last", id="last")
    file.unlink()
    ended = run("export", "notes", "out", status=1, said=2)
    assert f"tr-mmap: left out: record 'hurt': {file} is gone" in ended.stderr
    assert ended.stderr.endswith("6 records written to out, 1 left out\n")
    run("import", "again", "out")
    ids = [each["id"] for each in lines("ls", "again")]
    assert ids == ["last", *(f"id-{n}" for n in reversed(range(5)))]
    ended = run("ls", "notes", status=1)
    assert [json.loads(line)["id"] for line in ended.stdout.splitlines()] == ids
    assert "record 'hurt'" in ended.stderr
    assert len(run("ls", "notes", "--limit", 1).stdout.splitlines()) == 1
    with Store("notes") as store:
        assert store.ids()[1] == "hurt"
        assert store.update("hurt", tensors=None).content == "hurt"
    assert run("export", "notes", "whole").stderr == "7 records written to whole\n"


def test_a_broken_file_of_vectors_costs_the_vectors_in_it_and_no_others(place: Path) -> None:
    with Store("notes", dim=2) as store:
        store.add_many({"content": "early", "vector": [n, 1]} for n in range(1024))
        (place_of,) = [each["directory"] for each in lines("ls")]
        first = {path.name for path in Path(place_of, "vec").glob("v-*")}
        store.add_many({"content": "late", "vector": [n, 1]} for n in range(30))
        store.add_many({"content": "plain"} for n in range(5))
    for path in Path(place_of, "vec").glob("v-*"):
        if path.name not in first:
            os.truncate(path, 100)
    ended = run("export", "notes", "out", status=1, said=22)
    assert ended.stderr.count("left out: record") == 20
    assert "left out: 10 others" in ended.stderr
    run("import", "again", "out")
    with Store("again") as store:
        assert Counter(each.content for each in store.get_all()) == {"early": 1024, "plain": 5}
    with Store("notes") as store:
        for each in store.ids(filters={"content": "late"}):
            assert store.update(each, vector=None).content == "late"
    assert run("export", "notes", "whole").stderr == "1059 records written to whole\n"


def test_an_entry_that_cannot_be_read_is_named_and_the_others_are_exported(place: Path) -> None:
    with Store("notes") as store:
        store.add_many({"id": str(n), "content": f"text {n}"} for n in range(5))

        def damage(transaction: Any) -> None:
            transaction.put(b"2", b"\xc1", db=transaction.records)

        store._catalogue.write(damage)
    assert "left out: " in (said := run("export", "notes", "out", status=1, said=2).stderr)
    assert "record '2'" in said
    run("import", "again", "out")
    assert [each["id"] for each in lines("ls", "again")] == ["4", "3", "1", "0"]
    assert [json.loads(line)["id"] for line in run("ls", "notes", status=1).stdout.splitlines()] == ["4", "3", "1", "0"]
