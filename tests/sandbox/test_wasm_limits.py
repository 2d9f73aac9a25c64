# ruff: noqa: E501 - modules in text
"""Kind "wasm": each limit is kept, and its error names it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from wasm_modules import MEMORY, NUMBERS, module

from tr_mmap.sandbox import Algorithm, DeadlineExceeded, LimitExceeded, Limits, RunCancelled, Sandbox

SPIN = module('(func $spin (export "spin") (loop $l (br $l)))')
DEEP = module(
    '(func $deep (export "deep") (param $n i32) (if (local.get $n) (then',
    "(call $deep (i32.sub (local.get $n) (i32.const 1))))))",
)
GROW = module(MEMORY, '(func (export "grow") (param $pages i32) (result i32) (memory.grow (local.get $pages)))')


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(
        "wasm", limits=Limits(memory_nbytes=32 << 20, wall_ms=1500, cpu_ms=60_000, stack_nbytes=1 << 20)
    ) as box:
        yield box


def test_the_clock_of_the_engine_ends_a_module_and_shows_where_it_was(box: Sandbox) -> None:
    with pytest.raises(LimitExceeded) as caught:
        box.run(box.register("spin", SPIN))
    assert caught.value.limit == "wall_ms"
    assert "spin" in "".join(caught.value.__notes__)


def test_the_hosts_clock_ends_what_the_engine_cannot_interrupt() -> None:
    # The compiler is such a thing.
    code = module('(func (export "f") (param i32) (result i32)', "(local.get 0)", "(i32.popcnt)" * 400_000, ")")
    with Sandbox("wasm", limits=Limits(wall_ms=50, cpu_ms=60_000)) as box:
        with pytest.raises(LimitExceeded) as caught:
            box.register("f", code)
        assert caught.value.limit == "wall_ms"
        box.set_limits(wall_ms=20_000)
        assert box.call(box.register("add", NUMBERS), "add", 2, 3) == 5


def test_processor_time_is_limited() -> None:
    with Sandbox("wasm", limits=Limits(wall_ms=60_000, cpu_ms=200)) as box, pytest.raises(LimitExceeded) as caught:
        box.run(box.register("spin", SPIN))
    assert caught.value.limit == "cpu_ms"


def test_the_start_function_and_initialization_are_limited_too(box: Sandbox) -> None:
    for field in ("(start $spin)", '(export "_initialize" (func $spin))'):
        code = module("(func $spin (loop $l (br $l)))", field, '(func (export "f"))')
        with pytest.raises(LimitExceeded) as caught:
            box.call(box.register("f", code), "f")
        assert caught.value.limit == "wall_ms"


def test_a_run_after_a_long_pause_has_its_whole_time() -> None:
    # An interruption that came too late for one run would end the next.
    count = module(
        '(func (export "loops") (param $n i32) (loop $l (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))'
    )
    with Sandbox("wasm", limits=Limits(wall_ms=1000)) as box:
        algorithm = box.register("loops", count, reuse=True)
        for _ in range(200):
            box.call(algorithm, "loops", 1000)


def test_the_stack_is_limited_and_shows_the_modules_frames(box: Sandbox) -> None:
    algorithm = box.register("deep", DEEP)
    box.call(algorithm, "deep", 1000)
    with pytest.raises(LimitExceeded) as caught:
        box.call(algorithm, "deep", 1 << 30)
    assert caught.value.limit == "stack_nbytes"
    assert "deep" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("stack_nbytes", [64 << 20, 100 << 20])
def test_a_stack_of_64_mib_and_more_is_there_and_ends(stack_nbytes: int) -> None:
    with Sandbox("wasm", limits=Limits(stack_nbytes=stack_nbytes, wall_ms=20_000, cpu_ms=20_000)) as box:
        algorithm = box.register("deep", DEEP)
        box.call(algorithm, "deep", stack_nbytes // 64)  # each frame has 32 bytes at least
        with pytest.raises(LimitExceeded) as caught:
            box.call(algorithm, "deep", 1 << 30)
        assert caught.value.limit == "stack_nbytes"
        box.call(algorithm, "deep", 1000)


def test_memory_grows_up_to_its_limit_and_no_further(box: Sandbox) -> None:
    algorithm = box.register("grow", GROW)
    assert box.call(algorithm, "grow", 511) == 1  # 512 pages of 64 KiB in all
    assert box.call(algorithm, "grow", 512) == -1


def test_a_module_whose_memory_begins_beyond_the_limit_is_ended(box: Sandbox) -> None:
    with pytest.raises(LimitExceeded) as caught:
        box.run(box.register("f", module("(memory 513)", '(func (export "f"))')))
    assert caught.value.limit == "memory_nbytes"


def test_a_module_that_ends_itself_because_its_memory_is_full_has_exceeded_it(box: Sandbox) -> None:
    code = module(
        MEMORY,
        '(func (export "f") (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable)',
    )
    with pytest.raises(LimitExceeded) as caught:
        box.run(box.register("f", code))
    assert caught.value.limit == "memory_nbytes"


def test_several_memories_together_end_at_the_kernels_limit() -> None:
    fields = [
        f'(memory $m{n} 1) (func (export "g{n}") (result i32) (memory.grow $m{n} (i32.const 1000)))' for n in range(16)
    ]
    everything = " ".join(f"(i32.add (i32.ne (memory.grow $m{n} (i32.const 1000)) (i32.const -1))" for n in range(16))
    code = module(*fields, f'(func (export "f") (result i32) {everything} (i32.const 0) {")" * 16})')
    with Sandbox("wasm", limits=Limits(memory_nbytes=64 << 20)) as box:
        grown = box.call(box.register("f", code), "f")
    assert 1 <= grown <= (64 + 256) // 62  # of 1,000 pages each


def test_tables_are_limited(box: Sandbox) -> None:
    with pytest.raises(LimitExceeded) as caught:
        box.run(box.register("f", module("(table 100000000 funcref)", '(func (export "f"))')))
    assert caught.value.limit == "memory_nbytes"


def test_fuel_is_limited_and_is_the_same_for_every_run() -> None:
    with Sandbox("wasm", limits=Limits(fuel=10_000)) as box:
        add = box.register("numbers", NUMBERS, reuse=True)
        for _ in range(3):
            assert box.call(add, "add", 2, 3) == 5
        with pytest.raises(LimitExceeded) as caught:
            box.run(box.register("spin", SPIN))
        assert (caught.value.limit, caught.value.value) == ("fuel", 10_000)


def test_after_each_limit_the_next_run_is_well() -> None:
    with Sandbox("wasm", limits=Limits(wall_ms=300, stack_nbytes=1 << 20)) as box:
        spin, deep = box.register("spin", SPIN, reuse=True), box.register("deep", DEEP, reuse=True)
        for _ in range(3):
            with pytest.raises(LimitExceeded):
                box.run(spin)
            with pytest.raises(LimitExceeded):
                box.call(deep, "deep", 1 << 30)
            box.call(deep, "deep", 10)


@pytest.mark.parametrize("is_deadline", [True, False])
def test_a_deadline_and_a_cancel_hold_while_a_module_is_compiled(is_deadline: bool) -> None:
    code = module('(func (export "f") (param i32) (result i32)', "(local.get 0)", "(i32.popcnt)" * 400_000, ")")
    with Sandbox("wasm", limits=Limits(wall_ms=60_000, cpu_ms=60_000)) as box:
        algorithm = Algorithm("f", code, "f")
        end_s = time.monotonic() + 0.3 if is_deadline else None
        future = box.submit(algorithm, {"a": 1}, request_id="mine", deadline_s=end_s)
        if is_deadline:
            with pytest.raises(DeadlineExceeded):
                future.result(60)
            return
        end = time.monotonic() + 20
        while not box._executor._runs._runs:  # type: ignore[attr-defined]
            assert time.monotonic() < end
        assert box.cancel("mine")
        with pytest.raises(RunCancelled):
            future.result(60)
