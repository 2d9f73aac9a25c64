"""The machine and the versions that a run was made with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

__all__ = ["describe", "one_line"]

_PACKAGES: Final = (
    "tr_mmap",
    "numpy",
    "posix_ipc",
    "msgspec",
    "pyzmq",
    "iceoryx2",
    "torch",
    "ray",
    "pyarrow",
    "safetensors",
    "lmdb",
    "redis",
    "chromadb",
    "lancedb",
    "sqlite-vec",
    "faiss-cpu",
    "qdrant-client",
    "mem0ai",
)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory.total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "is_virtual": "hypervisor" in Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else None,
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {package: version for package in _PACKAGES if (version := _version(package))},
    }


def one_line(machine: dict[str, Any]) -> str:
    """``"AMD EPYC, 2 cores, 23.4 GiB, Linux 6.18, Python 3.11.7"``"""
    virtual = " (virtual)" if machine.get("is_virtual") else ""
    return (
        f"{machine['cpu']}{virtual}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['kernel']}, "
        f"Python {machine['python']}"
    )
