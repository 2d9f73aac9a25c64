"""The measurements beside the comparison over sizes, one a module.

Each module has ``run(quick, say) -> dict``. ``quick`` asks for fewer and shorter rounds, ``say`` is called with a text
that names the step that begins, and the result is what the run's JSON file keeps under the module's key.
"""

from . import calls, files, flood, gateway, idle, in_flight, memory, pool, sandbox, startup, store, text

__all__ = ["EXTRAS"]

EXTRAS = {
    "text": text,
    "calls": calls,
    "in_flight": in_flight,
    "pool": pool,
    "files": files,
    "startup": startup,
    "idle": idle,
    "memory": memory,
    "flood": flood,
    "sandbox": sandbox,
    "store": store,
    "gateway": gateway,
}
