"""What is measured beside the comparison over sizes: each module has ``run(quick, say) -> dict``."""

from . import files, flood, gateway, idle, memory, sandbox, startup, store, text

__all__ = ["EXTRAS"]

EXTRAS = {
    "text": text,
    "files": files,
    "startup": startup,
    "idle": idle,
    "memory": memory,
    "flood": flood,
    "sandbox": sandbox,
    "store": store,
    "gateway": gateway,
}
