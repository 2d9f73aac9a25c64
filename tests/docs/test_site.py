"""The documentation site is built without a warning, and has every public name, every page and every specification."""

from __future__ import annotations

import html
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, environment, made_once

pytest.importorskip("mkdocs", reason="needs the extra docs")
pytestmark = pytest.mark.timeout(400)  # the first test builds the site, which takes seconds where nothing else runs

PUBLIC = {  # and the page of each
    "tr_mmap": "reference/tr_mmap.html",
    "tr_mmap.aio": "reference/aio.html",
    "tr_mmap.errors": "reference/errors.html",
    "tr_mmap.tsr": "reference/tsr.html",
    "tr_mmap.sandbox": "reference/sandbox.html",
    "tr_mmap.store": "reference/store.html",
    "tr_mmap.store.compat": "reference/store.html",
    "tr_mmap.store.embedders": "reference/store.html",
    "tr_mmap.gateway": "reference/gateway.html",
    "tr_mmap.gateway.errors": "reference/gateway.html",
    "tr_mmap.compat.names": "reference/compat.html",
}
ROOMS = (
    "aio",
    "errors",
    "native",
)  # names of tr_mmap that are modules: two have a page, native has IS_COMPILED for users


def build(folder: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**environment(), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr


@pytest.fixture(scope="module")
def site() -> Path:
    return made_once("site", build)


def anchors(site: Path) -> set[str]:
    """The anchors of all pages of the reference."""
    pages = (site / "reference").glob("*.html")
    return {each for page in pages for each in re.findall(r' id="([^"]+)"', page.read_text(encoding="utf-8"))}


def test_the_site_is_built_without_a_warning(site: Path) -> None:
    assert (site / "index.html").exists()


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    there = anchors(site)
    modules = [importlib.import_module(name) for name in PUBLIC]
    for module in modules:
        text = (site / PUBLIC[module.__name__]).read_text(encoding="utf-8")
        for name in module.__all__:
            if module.__name__ == "tr_mmap" and name in ROOMS:
                continue
            value = getattr(module, name)
            places = {f"{each.__name__}.{name}" for each in modules if name in each.__all__}
            if inspect.isclass(value) or inspect.isfunction(value):
                places.add(f"{value.__module__}.{value.__qualname__}")
            full = f"{module.__name__}.{name}"
            assert places & there, f"docs/reference lacks {full}: write a line '::: {full}'"
            assert name in text or module.__name__ == "tr_mmap", f"{PUBLIC[module.__name__]} does not name {name}"
    assert "tr_mmap.native.IS_COMPILED" in there


def test_the_methods_that_users_call_are_in_the_reference(site: Path) -> None:
    """Also those that a class has from a base that is not public."""
    from tr_mmap import PythonSession, Server
    from tr_mmap.gateway import AsyncClient, Client, Gateway
    from tr_mmap.sandbox import Sandbox
    from tr_mmap.store import AsyncStore, Store

    text = "\n".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    for kind in (PythonSession, Server, Sandbox, Store, AsyncStore, Client, AsyncClient, Gateway):
        for name, value in inspect.getmembers(kind, callable):
            if not name.startswith("_") and inspect.getdoc(value):
                assert re.search(rf' id="[\w.]+\.{name}"', text), f"{kind.__name__}.{name}"


def test_no_docstring_shows_markup_of_sphinx(site: Path) -> None:
    for page in (site / "reference").glob("*.html"):
        text = re.sub(r"<pre.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        shown = html.unescape(re.sub(r"<[^>]+>", "", text.partition("<article")[2].partition("</article>")[0]))
        for mark in (r":(class|mod|func|meth|attr|data|exc):", r"::\s", r"``"):
            found = re.search(f".*{mark}.*", shown)
            assert not found, f"{page.name}: {found and found[0]}"


def test_no_table_shows_the_backslash_of_an_escaped_pipe(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert r"\|" not in "".join(re.findall(r"<td.*?</td>", page.read_text(encoding="utf-8"), re.DOTALL)), page


def test_the_specifications_are_those_of_the_docstrings(site: Path) -> None:
    def words(text: str) -> str:
        return " ".join(re.findall(r"\w+", text))

    def shown(page: str) -> str:
        text = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
        return words(html.unescape(re.sub(r"<[^>]+>", "", text)))

    pages = {name: shown(name) for name in ("file-format", "wire-format")}
    for module, page in {
        "tr_mmap.tsr": "file-format",
        "tr_mmap.channel.mapped": "wire-format",
        "tr_mmap.channel.files": "wire-format",
        "tr_mmap.channel.legacy": "wire-format",
        "tr_mmap.protocol.legacy": "wire-format",
        "tr_mmap.protocol.mac": "wire-format",
        "tr_mmap.protocol.messages": "wire-format",
        "tr_mmap.sessions.manifest": "wire-format",
    }.items():
        docstring = re.sub(r":\w+:`", "`", inspect.getdoc(importlib.import_module(module)) or "")
        docstring = re.sub(r"^\d+\. ", "", docstring, flags=re.MULTILINE)  # a list numbers itself
        for paragraph in docstring.split("\n\n"):
            assert words(paragraph) in pages[page], f"{page} lacks of {module}: {paragraph}"


def test_every_page_is_in_the_navigation_and_has_a_title(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    contents = (site / "contents.html").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs").with_suffix(".html")
        target = "contents.html" if str(name) == "index.html" else str(name)
        built = (site / target).read_text(encoding="utf-8")
        assert re.search(r"<title>\S.* - tr_mmap</title>|<title>tr_mmap</title>", built), target
        assert 'rel="icon"' in built
        assert target == "contents.html" or f'href="{target}"' in home + contents, f"{target} is in no list"


def test_the_pages_ask_no_other_host_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link)[^>]* (?:src|href)="(https?:[^"]+)"', page.read_text(encoding="utf-8")
        )
        assert not [each for each in loaded if "canonical" not in each], page
