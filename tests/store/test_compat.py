"""A program that was written for mem0's open API finds its methods, its arguments and the shapes of its answers."""

from __future__ import annotations

import asyncio
import hashlib
import pickle
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from store_support import embed

from tr_mmap import BadMessage
from tr_mmap.store import NoSuchRecord
from tr_mmap.store.compat import AsyncMemory, Memory, NoSuchMemory


@pytest.fixture
def memory(root: Path) -> Iterator[Memory]:
    made = Memory(path=root)
    yield made
    made.close()


def only(answer: dict[str, Any]) -> dict[str, Any]:
    (found,) = answer["results"]
    return found  # type: ignore[no-any-return]


def test_a_text_is_a_memory(memory: Memory) -> None:
    added = only(memory.add("Ada likes tea", user_id="ada", metadata={"kind": "taste"}))
    assert added == {"id": added["id"], "memory": "Ada likes tea", "event": "ADD", "actor_id": None, "role": "user"}
    found = memory.get(added["id"])
    assert found is not None
    created_at, updated_at = found.pop("created_at"), found.pop("updated_at")
    assert datetime.fromisoformat(created_at).utcoffset() is not None
    assert created_at == updated_at
    assert found == {
        "id": added["id"],
        "memory": "Ada likes tea",
        "hash": hashlib.md5(b"Ada likes tea").hexdigest(),
        "metadata": {"kind": "taste"},
        "user_id": "ada",
        "role": "user",
    }
    assert memory.get("nobody") is None


def test_the_arguments_of_mem0_are_taken_or_refused_by_their_names(root: Path) -> None:
    with closing(Memory.from_config(config_dict={"name": "notes", "path": root})) as memory:
        added = only(memory.add("Ada likes tea", user_id="ada", infer=False, memory_type=None, prompt="be brief"))
        assert added["memory"] == "Ada likes tea"
        with pytest.raises(BadMessage, match="memory_type is 'procedural_memory'") as caught:
            memory.add("steps", agent_id="a", memory_type="procedural_memory")
        assert caught.value.detail == "memory_type"
        # The role is the message's, as in mem0.
        own = {"role": "guest", "actor_id": "eve", "kind": "x"}
        found = memory.get(only(memory.add({"role": "user", "content": "x"}, user_id="u", metadata=own))["id"])
        assert found is not None
        assert (found["role"], found["actor_id"], found["metadata"]) == ("user", "eve", {"kind": "x"})


def test_a_memory_for_asyncio_is_made_by_a_name_or_of_a_memory(root: Path) -> None:
    async def use() -> None:
        async with AsyncMemory("notes", root) as memory:
            added = only(await memory.add("Ada likes tea", user_id="ada"))
        async with AsyncMemory(Memory("notes", root)) as memory:
            assert (await memory.get(added["id"]) or {})["memory"] == "Ada likes tea"
        async with await AsyncMemory.from_config(config_dict={"name": "notes", "path": root}) as memory:
            assert only(await memory.search("tea", user_id="ada"))["id"] == added["id"]
            with pytest.raises(BadMessage, match="give it alone"):
                AsyncMemory(memory.memory, root)
        with pytest.raises(BadMessage, match="cannot name a store"):
            AsyncMemory(memory)  # type: ignore[arg-type]

    asyncio.run(use())


def test_a_conversation_is_a_memory_for_each_message_but_the_system_s(memory: Memory) -> None:
    messages = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "I moved to Lyon.", "name": "ada"},
        {"role": "assistant", "content": "Noted."},
    ]
    added = memory.add(messages, user_id="u", agent_id="a", run_id="r")["results"]
    assert [(each["role"], each["actor_id"], each["memory"]) for each in added] == [
        ("user", "ada", "I moved to Lyon."),
        ("assistant", None, "Noted."),
    ]
    found = memory.get(added[0]["id"])
    assert found is not None
    assert {name: found[name] for name in ("user_id", "agent_id", "run_id", "actor_id", "role", "metadata")} == {
        "user_id": "u",
        "agent_id": "a",
        "run_id": "r",
        "actor_id": "ada",
        "role": "user",
        "metadata": None,
    }
    assert only(memory.add(messages[1], user_id="v"))["role"] == "user"


def test_memories_are_found_by_scopes_as_arguments_and_as_filters(memory: Memory) -> None:
    for user in ("ada", "ben"):
        memory.add([{"role": "user", "content": f"{user} likes {what}"} for what in ("tea", "cake")], user_id=user)
    for scopes in ({"user_id": "ada"}, {"filters": {"user_id": "ada"}}):
        hits = memory.search("who likes tea", **scopes)["results"]
        assert [hit["memory"] for hit in hits] == ["ada likes tea", "ada likes cake"]
        assert hits[0]["score"] > hits[1]["score"] > 0
        assert [each["memory"] for each in memory.get_all(**scopes)["results"]] == ["ada likes cake", "ada likes tea"]
        for number in ({"top_k": 1}, {"limit": 1}):
            assert len(memory.search("likes", **scopes, **number)["results"]) == 1
            assert only(memory.get_all(**scopes, **number))["memory"] == "ada likes cake"
    assert memory.search("tea", user_id="ada", threshold=100.0) == {"results": []}
    for none in ({"top_k": 0}, {"limit": 0}, {"top_k": 0, "limit": 5}):  # a number, and not its absence
        for ask in (partial(memory.search, "tea"), memory.get_all):
            with pytest.raises(BadMessage, match="limit is 0; it is a whole number, 1 or more"):
                ask(user_id="ada", **none)


def test_mem0_s_filters_mean_the_same(memory: Memory) -> None:
    for number in range(6):
        memory.add(f"note {number}", user_id="u", metadata={"n": number, **({"tag": "odd"} if number % 2 else {})})

    def found(filters: dict[str, Any]) -> list[int]:
        return [each["metadata"]["n"] for each in memory.get_all(filters={"user_id": "u", **filters})["results"]]

    assert found({"tag": "*"}) == [5, 3, 1]
    assert found({"n": {"gte": 2, "lt": 4}}) == [3, 2]
    assert found({"OR": [{"n": 0}, {"tag": "*"}]}) == [5, 3, 1, 0]
    assert found({"NOT": [{"tag": "odd"}]}) == [4, 2, 0]
    assert found({"tag": {"eq": "*"}}) == []
    with pytest.raises(BadMessage, match="icontains"):
        found({"tag": {"icontains": "ODD"}})


def test_an_update_changes_the_text_and_adds_to_the_metadata(memory: Memory) -> None:
    memory_id = only(memory.add({"role": "user", "content": "one", "name": "ada"}, user_id="u", metadata={"a": 1}))[
        "id"
    ]
    assert memory.update(memory_id, "two") == {"message": "Memory updated successfully!"}
    assert memory.update(memory_id, data="three", metadata={"b": 2, "actor_id": "ben"})["message"]
    found = memory.get(memory_id)
    assert found is not None
    assert (found["memory"], found["metadata"], found["actor_id"]) == ("three", {"a": 1, "b": 2}, "ada")
    assert found["updated_at"] > found["created_at"]


def test_what_is_not_there_is_an_error_that_mem0_s_programs_catch(memory: Memory) -> None:
    for action in (lambda: memory.update("nobody", "x"), lambda: memory.delete("nobody")):
        with pytest.raises(NoSuchMemory, match="nobody") as caught:
            action()
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, NoSuchRecord)
        assert pickle.loads(pickle.dumps(caught.value)).id == "nobody"


def test_deletions_are_of_one_of_a_scope_or_of_all(memory: Memory) -> None:
    ids = [only(memory.add(f"note {number}", user_id="uv"[number % 2]))["id"] for number in range(6)]
    assert memory.delete(ids[0]) == {"message": "Memory deleted successfully!"}
    with pytest.raises(BadMessage, match="reset"):
        memory.delete_all()
    assert memory.delete_all(user_id="v") == {"message": "Memories deleted successfully!"}
    assert len(memory.get_all()["results"]) == 2
    assert memory.clear() == 2
    memory.add("x", user_id="u")
    memory.reset()
    assert memory.get_all() == {"results": []}


def test_a_history_has_the_texts_before_and_after(memory: Memory) -> None:
    memory_id = only(memory.add({"role": "user", "content": "one", "name": "ada"}, user_id="u"))["id"]
    memory.update(memory_id, "two")
    memory.delete(memory_id)
    events = memory.history(memory_id)
    assert [(each["event"], each["old_memory"], each["new_memory"], each["is_deleted"]) for each in events] == [
        ("ADD", None, "one", False),
        ("UPDATE", "one", "two", False),
        ("DELETE", "two", None, True),
    ]
    assert {each["memory_id"] for each in events} == {memory_id}
    assert len({each["id"] for each in events}) == 3
    assert {(each["actor_id"], each["role"]) for each in events} == {("ada", "user")}
    assert len({each["created_at"] for each in events}) == 1
    assert [each["updated_at"] for each in events] == sorted(each["updated_at"] for each in events)
    assert memory.history("nobody") == []


def test_what_is_not_done_here_is_refused_by_name(memory: Memory) -> None:
    for action, text in (
        (lambda: memory.add("x", user_id="u", infer=True), "nothing is inferred"),
        (lambda: memory.add("x"), "user_id, agent_id or run_id"),
        (lambda: memory.add([{"role": "user"}], user_id="u"), "content"),
        (lambda: memory.add([{"role": "user", "content": [{"type": "image_url"}]}], user_id="u"), "content"),
        (lambda: memory.search("x", rerank=True), "rerank"),
        (lambda: memory.search("x", actor_id="y"), "filters"),
        (lambda: memory.get_all(app_id="y"), "filters"),
        (lambda: Memory.from_config({"llm": {"provider": "x"}}), "'llm'"),
    ):
        with pytest.raises(BadMessage, match=text):
            action()
    assert memory.get_all() == {"results": []}


def test_a_memory_is_made_of_a_mapping_and_takes_an_embedder(root: Path) -> None:
    memory = Memory.from_config({"name": "mine", "path": root, "embedder": embed})
    memory.add(["aaa", "bbb"], user_id="u")  # type: ignore[list-item]
    assert memory.search("aab", user_id="u")["results"][0]["memory"] == "aaa"
    assert memory.store.search("zzz", mode="text") == []
    memory.close()


def test_the_asynchronous_one_does_the_same(root: Path) -> None:
    async def main() -> None:
        memory = await AsyncMemory.create(path=root)
        added = only(await memory.add("Ada likes tea", user_id="ada"))
        assert (await memory.get(added["id"]))["memory"] == "Ada likes tea"  # type: ignore[index]
        assert await memory.get("nobody") is None
        assert only(await memory.search("tea", user_id="ada"))["score"] > 0
        await memory.update(added["id"], "Ada likes coffee")
        assert only(await memory.get_all(user_id="ada"))["memory"] == "Ada likes coffee"
        assert [each["event"] for each in await memory.history(added["id"])] == ["ADD", "UPDATE"]
        for action in (memory.update("nobody", "x"), memory.delete("nobody")):
            with pytest.raises(NoSuchMemory):
                await action
        await memory.delete(added["id"])
        await memory.add(["a", "b"], user_id="u")
        await memory.delete_all(user_id="v")
        assert await memory.clear() == 2
        await memory.reset()
        await memory.close()
        again = await AsyncMemory.from_config({"path": root})
        assert await again.get_all() == {"results": []}
        await again.close()

    asyncio.run(main())


# -- the eight methods, as a store has them: create, add, search, get, get_all, update, delete, clear ------------------


def test_the_eight_methods_of_an_asynchronous_memory(root: Path) -> None:
    from tr_mmap.store import AsyncStore

    async def main() -> None:
        async with await AsyncStore.open("eight", root) as store:
            ids = [await store.add(f"word {'rare ' * n}", metadata={"n": n}) for n in range(4)]
            assert all(isinstance(each, str) for each in ids)
            assert len(set(ids)) == 4
            scores = [hit.score for hit in await store.search("rare word", limit=10)]
            assert scores == sorted(scores, reverse=True)
            assert len(scores) == 4
            assert (await store.search("rare", limit=1))[0].record.id in ids
            assert await store.search("nothing like it") == []
            found = await store.get(ids[2])
            assert found is not None
            assert (found.content, found.metadata) == ("word rare rare ", {"n": 2})
            assert await store.get("missing") is None
            assert [record.id for record in await store.get_all()] == ids[::-1]
            assert [record.id for record in await store.get_all(limit=2)] == ids[:1:-1]
            changed = await store.update(ids[0], content="other", metadata={"n": 9})
            assert (changed.content, changed.metadata, changed.version) == ("other", {"n": 9}, 2)
            with pytest.raises(NoSuchRecord):
                await store.update("missing", content="x")
            assert await store.delete(ids[1]) is True
            assert await store.delete(ids[1]) is False
            assert await store.delete("missing") is False
            assert await store.clear() == 3
            assert await store.clear() == 0
            assert await store.get_all() == []

    asyncio.run(main())
