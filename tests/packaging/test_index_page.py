"""The README on a package index: no link that leads nowhere, no picture that is not shown."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from distributions import Distributions
from readme_renderer import markdown
from support import ROOT

SOME = re.compile(r'(?:href|src)="([^"]*)"')
LINKS = "https://example.org/tr_mmap/blob/v1/{path}"
IMAGES = "https://example.org/tr_mmap/raw/v1/{path}"


@pytest.fixture(scope="module")
def index_page() -> Callable[[str, str, str], str]:
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.index_page  # type: ignore[no-any-return]


def rendered(text: str) -> str:
    """As an index does it, which removes what it thinks dangerous."""
    html = markdown.render(text)
    assert html is not None
    return str(html)


def test_what_an_index_shows_has_no_relative_link_and_keeps_its_letters(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("/METADATA"))
        text = archive.read(name).decode("utf-8").partition("\n\n")[2]
    targets = [each for each in SOME.findall(rendered(text)) if not each.startswith("#user-content-")]
    assert [each for each in targets if not each.startswith("https://")] == []
    assert "40 µs" in text
    assert re.search(r"with PythonSession\(\) as session:", text)


def test_the_addresses_of_the_settings_make_links_and_pictures(index_page: Callable[[str, str, str], str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    html = rendered(index_page(text, LINKS, IMAGES))
    assert '<img src="https://example.org/tr_mmap/raw/v1/docs/bench/latency.png"' in html
    assert 'href="https://example.org/tr_mmap/blob/v1/docs/sessions.md#signed-messages-and-checksums"' in html
    assert [each for each in SOME.findall(html) if not each.startswith(("#user-content-", "https://"))] == []


def test_without_addresses_a_link_becomes_its_text_and_the_file(index_page: Callable[[str, str, str], str]) -> None:
    text = "# t\n[the words](docs/a.md#b), [LICENSE](LICENSE), [below](#c), [x](https://y.org)\n\n![a plot](d/e.png)\n"
    assert index_page(text, "", "").splitlines()[3:] == [
        "the words (`docs/a.md`), LICENSE, below, [x](https://y.org)",
        "",
        "a plot (`d/e.png`)",
    ]


def test_code_is_left_as_it_is(index_page: Callable[[str, str, str], str]) -> None:
    code = "```python\nf[x](y)\n```"
    assert code in index_page(f"# t\n\n{code}\n", LINKS, IMAGES)
