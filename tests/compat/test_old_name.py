"""The module of the original framework."""

from __future__ import annotations

from pathlib import Path

from support import run_python


def test_the_old_name_gives_the_same_class() -> None:
    import tr_mmap

    shim = Path(tr_mmap.__file__).parent / "compat"
    ended = run_python(
        "-c",
        f"import sys; sys.path.insert(0, {str(shim)!r})\n"
        "import tech_renaissance, tr_mmap\n"
        "print(tech_renaissance.TechRenaissanceServer is tr_mmap.TechRenaissanceServer)",
    )
    assert ended.stdout.strip() == "True", ended.stderr
