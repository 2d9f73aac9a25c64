"""A session that asyncio awaits: a thousand requests at once, and a timeout that cancels its request.

This file is the controller and the worker.
"""

import asyncio
import sys

import numpy as np

from tr_mmap import Server, aio

server = Server()


@server.command("norm")
def norm(x) -> str:
    return f"{np.linalg.norm(x):.3f}"


@server.command("forever")
async def forever() -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        print("a coroutine was cancelled in the worker")


async def main() -> None:
    async with aio.PythonSession(__file__) as session:
        vectors = [np.full(4, number, np.float32) for number in range(1000)]
        norms = await asyncio.gather(*(session.calculate("norm", vector) for vector in vectors))
        print("norms:", norms[0], norms[1], norms[999])

        try:
            async with asyncio.timeout(0.1):
                await session.calculate("forever")
        except TimeoutError:
            print("given up after 100 ms")
        print("and the session goes on:", await session.calculate("norm", vectors[3]))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run()
    else:
        asyncio.run(main())
