"""A gateway in a process of its own, and a client that registers, runs, follows, cancels, and is refused."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tr_mmap.gateway import Client
from tr_mmap.gateway.errors import Forbidden
from tr_mmap.sandbox.errors import AlgorithmError, LimitExceeded, RunCancelled

TR_MMAP = [sys.executable, "-m", "tr_mmap"]  # tr-mmap


def normalize(inputs):
    x = inputs["x"]
    print("normalizing", x.shape)
    return {"y": (x - np.mean(x)) / np.std(x), "mean": float(np.mean(x))}


@contextmanager
def gateway(folder: Path) -> Iterator[str]:
    """A gateway at a free port, as a service would run it. Its address."""
    config = folder / "tr_mmap.toml"
    config.write_text('[server]\nport = 0\n[auth]\nkey_file = "tr_mmap.key"\n')
    token(folder, "admin")  # makes the key
    with subprocess.Popen([*TR_MMAP, "serve", "--config", config], stderr=subprocess.PIPE, text=True) as server:
        try:
            line = next(line for line in server.stderr if line.startswith("serving on"))
            yield re.search(r"http://[^;]+", line)[0]
        finally:
            server.terminate()
            server.communicate()


def token(folder: Path, *scopes: str) -> str:
    """A token that grants these."""
    options = [each for scope in scopes for each in ("--scope", scope)]
    command = [*TR_MMAP, "token", "--config", folder / "tr_mmap.toml", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def main() -> None:
    with tempfile.TemporaryDirectory() as name, gateway(Path(name)) as url:
        with Client(url, token(Path(name), "register", "execute")) as client:
            info = client.register(normalize, memory_mb=256, timeout_ms=2000)
            print("registered:", info.name, "with", info.resource_requirements.memory_mb, "MiB")
            result = client.run(info, {"x": np.arange(512.0).reshape(2, 256)})
            print(f"mean {result['mean']}, then {result['y'].mean():.1f}; it printed: {result.stdout.strip()}")

            task = client.submit(info, {"x": np.arange(4.0)}, priority=5)
            print("states end with:", [each.status for each in task.events()][-1], task.result()["mean"])
            endless = client.submit(code="while True: pass")
            endless.cancel()
            for what, call in (
                ("cancelled", endless.result),
                ("is wrong", lambda: client.run(info, {})),
                ("takes all memory", lambda: client.execute("output = bytes(1 << 40)")),
            ):
                try:
                    call()
                except (AlgorithmError, LimitExceeded, RunCancelled) as error:
                    print(f"{what}: {type(error).__name__}")
        with Client(url, token(Path(name), "execute")) as client:
            print("again:", client.execute("output = inputs['x'] + 1", {"x": np.arange(3)}).value)
            try:
                client.register(normalize)
            except Forbidden as error:
                print("no more than its token grants:", error)


if __name__ == "__main__":
    main()
