"""The spares of a pool are for all its workers: what starts later is made of them, and none of them is ever left."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from pool_ways import POOL_TOOLS
from support import script, wait_until

from tr_mmap import SessionPool, aio

SAYS = """
import sys
is_spare = "numpy" in sys.modules
from tr_mmap import Server
server = Server()
@server.command("say")
def say() -> str:
    return f"{is_spare} {VERSION}"
server.run()
"""


def pids_of(pool: Any) -> set[int]:
    return {each.pid for each in pool.stats().workers if each.state == "ready"}


def started_as_spares() -> set[int]:
    return {each.pid for each in psutil.Process().children() if "TR_MMAP_SPARE" in each.environ()}


def spares_of(pool: Any) -> set[int]:
    """The processes of its spares, when there are as many as there are to be."""
    wait_until(lambda: pool.stats().spare_workers == 2)
    return started_as_spares() - {each.pid for each in pool.stats().workers}


def test_dead_workers_are_replaced_by_spares_and_new_spares_are_made() -> None:
    with SessionPool(POOL_TOOLS, 2, quiet_mode=True, spare_workers=2) as pool:
        pool.wait_until_ready()
        assert [pool.submit("say", each).result() for each in "ab"] == ["a", "b"]
        for _ in range(2):
            spares, before = spares_of(pool), pids_of(pool)
            assert len(spares) == 2
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda before=before: len(pids_of(pool) - before) == 2)
            assert pids_of(pool) == spares
            assert {pool.submit("say", each).result() for each in range(8)} == set(map(str, range(8)))
        left = spares_of(pool)
    assert not any(map(psutil.pid_exists, left))


def test_a_pool_that_grows_or_hangs_or_sees_a_new_script_takes_spares(tmp_path: Path) -> None:
    path = script(tmp_path, SAYS.replace("{VERSION}", "old"))
    with SessionPool(path, 1, quiet_mode=True, spare_workers=2, reload=True) as pool:
        assert pool.submit("say").result() == "False old"
        spares = spares_of(pool)
        pool.resize(2)
        wait_until(lambda: pids_of(pool) & spares)
        pool.resize(1)
        wait_until(lambda: len(pool.stats().workers) == 1)
        spares = spares_of(pool)
        script(tmp_path, SAYS.replace("{VERSION}", "changed"))
        wait_until(lambda: pool.submit("say").result() == "True changed")
        assert pids_of(pool) <= spares


def test_workers_that_may_answer_only_so_often_are_replaced_by_spares() -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True, spare_workers=2, max_tasks_per_child=1) as pool:
        assert pool.submit("say", "a").result() == "a"
        spares = spares_of(pool)
        assert pool.submit("say", "b").result() == "b"
        wait_until(lambda: pids_of(pool) & spares)


@pytest.mark.parametrize("end", ["shutdown", "terminate_workers", "kill_workers"])
def test_a_pool_that_ends_leaves_no_spare(end: str) -> None:
    pool = SessionPool(POOL_TOOLS, 1, quiet_mode=True, spare_workers=2)
    pool.wait_until_ready()
    spares = spares_of(pool)
    getattr(pool, end)()
    pool.shutdown()
    assert not any(map(psutil.pid_exists, spares))
    assert pool.stats().spare_workers == 0


async def _await_all() -> None:
    async with aio.PythonSession(POOL_TOOLS, quiet_mode=True, spare_workers=1) as session:
        wait_until(lambda: session.stats().spare_workers == 1)
        (spare,) = started_as_spares()
        await session.terminate()
        await session.start()
        assert session.pid == spare
        assert await session.fetch_response("say x") == "x"


def test_sessions_for_a_loop_have_spares_too() -> None:
    asyncio.run(_await_all())
