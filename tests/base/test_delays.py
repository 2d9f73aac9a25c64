"""Timers of one delay that share one of the loop's."""

from __future__ import annotations

import asyncio

from tr_mmap.base.delays import Delay


def test_calls_come_once_their_delay_is_over_and_in_their_order() -> None:
    async def main() -> tuple[list[int], float, float]:
        loop = asyncio.get_running_loop()
        delay, came, done = Delay(loop, 0.01), [], asyncio.Event()
        began_s = loop.time()
        for number in range(5):
            delay.add(lambda number=number: came.append(number))
        delay.add(done.set)
        await done.wait()
        first_s = loop.time() - began_s
        done.clear()
        delay.add(done.set)  # after the others are over
        await done.wait()
        return came, first_s, loop.time() - began_s

    came, first_s, second_s = asyncio.run(main())
    assert came == [0, 1, 2, 3, 4]
    assert first_s >= 0.01
    assert second_s >= first_s + 0.01


def test_a_call_that_was_cancelled_does_not_come() -> None:
    async def main() -> list[str]:
        delay, came, done = Delay(asyncio.get_running_loop(), 0.005), [], asyncio.Event()
        for name in ("first", "second", "third"):
            added = delay.add(lambda name=name: came.append(name))
            if name != "second":
                added.call = None
        delay.add(done.set)
        await done.wait()
        return came

    assert asyncio.run(main()) == ["second"]


def test_a_call_that_raises_keeps_no_other_from_coming() -> None:
    async def main() -> list[str]:
        loop, told, done = asyncio.get_running_loop(), [], asyncio.Event()
        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        delay = Delay(loop, 0.005)
        delay.add(lambda: 1 / 0)
        delay.add(done.set)
        await done.wait()
        return told

    assert asyncio.run(main()) == ["division by zero"]


def test_many_take_one_timer_of_the_loop() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        delay = Delay(loop, 10)
        for _ in range(1000):
            delay.add(lambda: None).call = None
        return len(loop._scheduled)  # type: ignore[attr-defined]

    assert asyncio.run(main()) == 1
