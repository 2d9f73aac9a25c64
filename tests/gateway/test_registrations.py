"""What one subject may register, and what that takes from others: nothing."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import httpx
import pytest
from gateways import RunningGateway
from hypothesis import given
from hypothesis import strategies as st

from tr_mmap.gateway import registry
from tr_mmap.gateway.base64_text import from_base64
from tr_mmap.gateway.boxes import BoxKey
from tr_mmap.gateway.errors import RegistryFull
from tr_mmap.gateway.registry import Registered, Registry
from tr_mmap.sandbox import Algorithm, Limits

ALGORITHMS = "/api/v1/python/algorithms"
KEY = BoxKey("contained", Limits())


def registered(name: str, owner: str, nbytes: int) -> Registered:
    return Registered(name, "", "python", Algorithm(name, b"", None), KEY, owner, 0.0, nbytes=nbytes)


# -- how many --------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["ada", "eve", "bob"]), st.integers(0, 60), st.booleans()),
        max_size=30,
    )
)
def test_never_more_is_registered_than_there_is_room_for(steps: list[tuple[str, str, int, bool]]) -> None:
    found = Registry(most=4, most_nbytes=150, most_of_subject=2, most_nbytes_of_subject=100)
    for name, owner, nbytes, is_removed in steps:
        if is_removed:
            with contextlib.suppress(LookupError):
                found.remove(name)
            continue
        others = [each for each in found.all() if each.name != name]
        own = [each for each in others if each.owner == owner]
        fits = (
            len(others) < 4
            and len(own) < 2
            and sum(each.nbytes for each in others) + nbytes <= 150
            and sum(each.nbytes for each in own) + nbytes <= 100
        )
        try:
            found.put(registered(name, owner, nbytes))
            assert fits
        except RegistryFull:
            assert not fits
            assert found.all() == sorted([*others, *[each for each in found.all() if each.name == name]], key=_name)
    for each in found.all():
        found.remove(each.name)
    assert not found._counts
    assert not found._nbytes


def _name(each: Registered) -> str:
    return each.name


def test_one_subject_s_algorithms_leave_room_for_others() -> None:
    found = Registry()
    for number in range(registry._MOST_OF_SUBJECT):
        found.put(registered(str(number), "eve", 1000))
    with pytest.raises(RegistryFull, match="unregister one"):
        found.put(registered("one more", "eve", 1000))
    found.put(registered("mine", "ada", 1 << 20))
    assert registry._MOST_OF_SUBJECT * 2 <= registry._MOST
    assert registry._MOST_NBYTES_OF_SUBJECT * 2 <= registry._MOST_NBYTES


def test_code_that_is_too_much_is_refused_and_there_is_room_again_after(gateway: RunningGateway) -> None:
    custom = bytes(16 << 20)  # a section without a meaning, and of so many bytes
    module = b"\0asm\1\0\0\0" + b"\0\x80\x80\x80\x08" + custom
    wasm = base64.b64encode(module).decode()

    def register(name: str, subject: str) -> httpx.Response:
        body = {"name": name, "kind": "wasm", "wasm": wasm}
        return gateway.ask("POST", ALGORITHMS, body, scopes=("register", "execute"), subject=subject)

    fit = registry._MOST_NBYTES_OF_SUBJECT // len(module)
    for number in range(fit):
        assert register(f"large-{number}", "eve").status_code == 201
    answer = register("one-more", "eve")
    assert (answer.status_code, answer.json()["type"]) == (409, "RegistryFull")
    assert gateway.ask("GET", ALGORITHMS + "/one-more").status_code == 404
    assert register("large-0", "eve").status_code == 201  # in the place of the former
    assert register("another-s", "ada").status_code == 201
    for number in range(fit):
        gone = gateway.ask("DELETE", f"{ALGORITHMS}/large-{number}", scopes=("register",), subject="eve")
        assert gone.status_code == 200
    assert register("one-more", "eve").status_code == 201


@pytest.mark.parametrize(
    "fields",
    [
        {"function": "f" * 257},
        {"outputs": ["x"] * 257},
        {"outputs": ["x" * 257]},
        {"dependencies": ["numpy"] * 65},
        {"code": "#" * ((1 << 20) + 1)},
    ],
)
def test_fields_have_a_length(gateway: RunningGateway, fields: dict[str, Any]) -> None:
    answer = gateway.ask("POST", ALGORITHMS, {"name": "long", "code": "output = 1", **fields})
    assert answer.status_code == 400
    assert next(iter(fields)) in answer.json()["error"]


# -- what it takes from others ---------------------------------------------------------------------------------------


def sandboxes(gateway: RunningGateway) -> int:
    return len(gateway.ask("GET", "/api/v1/scheduler/status").json()["sandboxes"])


def test_registering_makes_no_sandbox_of_its_own_limits(gateway: RunningGateway) -> None:
    gateway.register("usual", "output = 1")
    before = sandboxes(gateway)
    for number in range(12):
        info = gateway.register(f"own-{number}", "output = 2", timeout_ms=1000 + number)
        assert info["timeout_ms"] == 1000 + number
    assert sandboxes(gateway) == before
    assert gateway.execute(algorithm="own-3") == 2


def test_runs_with_many_limits_close_their_owner_s_sandboxes_and_nobody_else_s(gateway: RunningGateway) -> None:
    scopes = ("register", "execute")
    kept = "import os\ndef kept(inputs):\n    return os.getpid()\n"
    body = {"name": "kept", "code": kept, "reuse": True, "timeout_ms": 4321}
    assert gateway.ask("POST", ALGORITHMS, body, scopes=scopes).status_code == 201

    def pid() -> int:
        answer = gateway.ask("POST", "/api/v1/python/execute", {"algorithm": "kept"}, scopes=scopes)
        return int(answer.json()["result"])

    first = pid()
    for number in range(10):  # more than [sandbox] max_sandboxes
        other = {"name": f"eve-{number}", "code": "output = 3", "timeout_ms": 2000 + number}
        for path, sent in ((ALGORITHMS, other), ("/api/v1/python/execute", {"algorithm": other["name"]})):
            answer = gateway.ask("POST", path, sent, scopes=scopes, subject="eve")
            assert answer.is_success, answer.text
    assert pid() == first


# -- base64 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [0, 1, 786_431, 786_432, 786_433, 3_000_000])
def test_base64_of_any_length_is_what_it_was(nbytes: int) -> None:
    data = bytes(range(256)) * (nbytes // 256 + 1)
    data = data[:nbytes]
    assert from_base64(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize("text", ["A", "AA=A", "é" * 4, "AAA\n", "A" * (1 << 20) + "A", 5, ["AAAA"]])
def test_what_is_no_base64_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="base64"):
        from_base64(text)


@pytest.mark.parametrize("at", [(1 << 20) - 4, 1 << 20])
def test_padding_ends_base64_wherever_it_stands(at: int) -> None:
    text = "A" * at + "AA==" + "A" * (1 << 20)
    with pytest.raises(ValueError, match="base64"):
        from_base64(text)
