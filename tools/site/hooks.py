"""Make what the site has beyond ``docs/``: its navigation, the README, the files that pages link to, the commands.

MkDocs calls the functions named ``on_…``. The pages are written for a reader of the repository, whose links lead to
files. On the site, README.md is the first page, docs/index.md is ``contents``, and a file outside ``docs/`` that any
page links to has a page of its own below ``source/``. So every link works both in the repository and on the site. These
functions never write into the repository.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = "docs"
CONTENTS: Final = "docs/index.md"
# Pages at the top of the repository, and their names on the site. One that is not there is left out.
TOP: Final = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
MARK: Final = re.compile(r"^<!-- (.*), by tools/site/hooks.py -->$", re.MULTILINE)
LANGUAGES: Final = {
    ".py": "python",
    ".c": "c",
    ".h": "c",
    ".cpp": "cpp",
    ".hpp": "cpp",
    ".rs": "rust",
    ".sh": "sh",
    ".toml": "toml",
    ".yml": "yaml",
    ".service": "ini",
    ".json": "json",
}
_ROW: Final = re.compile(r"^ *\|.*$", re.MULTILINE)
_FENCED: Final = re.compile(r"^(```+).*?^\1", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]*)(#[^)\s]*)?(?=\))")


# -- links -----------------------------------------------------------------------------------------------------------


def _prose(text: str) -> Iterator[tuple[str, bool]]:
    """The parts of a page, each with whether it is prose; the others are blocks of code."""
    end = 0
    for block in _FENCED.finditer(text):
        yield text[end : block.start()], True
        yield block[0], False
        end = block.end()
    yield text[end:], True


def targets(text: str, origin: str) -> Iterator[str]:
    """The paths of the repository that a page links to; ``origin`` is the page's own."""
    for part, is_prose in _prose(text):
        if is_prose:
            yield from (_resolve(link[1], origin) for link in _LINK.finditer(part) if link[1])


def _resolve(link: str, origin: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def site_path(path: str) -> str:
    """Where a file or a folder of the repository is on the site."""
    if path in TOP:
        return TOP[path]
    if path == CONTENTS:
        return "contents.md"
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def for_the_site(text: str, origin: str) -> str:
    """A page of the repository with its links as the site has them. A link to nothing stays, for MkDocs to report."""
    here = posixpath.dirname(site_path(origin))

    def rewrite(link: re.Match[str]) -> str:
        target = _resolve(link[1], origin) if link[1] else ""
        if not target or not (ROOT / target).exists():
            return link[0]
        return posixpath.relpath(site_path(target), here or ".") + (link[2] or "")

    prose = ((_ROW.sub(_pipes, _LINK.sub(rewrite, part)) if is_prose else part) for part, is_prose in _prose(text))
    return "".join(prose)


def _pipes(row: re.Match[str]) -> str:
    """A row of a table. Code hosts want a pipe within code escaped there; MkDocs would show the backslash."""
    return re.sub(r"`[^`]+`", lambda code: code[0].replace(r"\|", "|"), row[0])


# -- pages -----------------------------------------------------------------------------------------------------------


def source_page(path: str) -> str:
    """The page that shows a file, or lists a folder."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(each.name for each in place.iterdir() if each.is_file() and each.suffix != ".wasm")
        return "\n".join([f"# {path}/", "", *(f"- [`{name}`]({name})" for name in names), ""])
    text = place.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = LANGUAGES.get(place.suffix, "sh" if text.startswith("#!/bin/sh") else "text")
    return f"# {place.name}\n\n`{path}`\n\n`````{language}\n{text}\n`````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in ``docs/``."""
    files.remove(files.src_uris["index.md"])
    pages = {path: (ROOT / path).read_text(encoding="utf-8") for path in TOP if (ROOT / path).exists()}
    pages[CONTENTS] = (ROOT / CONTENTS).read_text(encoding="utf-8")
    todo = list(pages.items())
    todo += [(f"{DOCS}/{page.src_uri}", page.content_string) for page in files.documentation_pages()]
    while todo:
        origin, text = todo.pop()
        for target in targets(text, origin):
            is_ours = target.startswith((f"{DOCS}/", ".."))
            if not is_ours and target not in pages and (ROOT / target).exists():
                origin_of_links = f"{target}/index.md" if (ROOT / target).is_dir() else target
                pages[target] = source_page(target)
                todo.append((origin_of_links, pages[target]))
    for path, text in pages.items():
        origin = f"{path}/index.md" if (ROOT / path).is_dir() else path
        files.append(File.generated(config, site_path(path), content=for_the_site(text, origin)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite the links of a page of ``docs/``, and replace each mark with the text that it asks for."""
    if page.file.generated_by is None:
        markdown = for_the_site(markdown, f"{DOCS}/{page.file.src_uri}")
    return MARK.sub(lambda mark: made(mark[1]), markdown)


def made(what: str) -> str:
    """The text for a page's mark: the commands, the transitions, or else the source of the module that it names."""
    if what == "the commands":
        return commands()
    if what == "the transitions":
        return transitions()
    return f"```python\n{(ROOT / what).read_text(encoding='utf-8')}```"


def commands() -> str:
    """Every command of ``tr-mmap``, as Markdown, below a heading of the second level."""
    import typer
    from typer.cli import get_docs_for_click

    from tr_mmap.cli import app

    os.environ["TERM"] = "dumb"
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="tr-mmap")
    text = text.partition("\n## ")[2]  # what is above lists the commands, as the navigation does
    return re.sub(r"^(#+) `(.*)`$", r"\1 \2", f"## {text}", flags=re.MULTILINE)


def transitions() -> str:
    """The table of the status words and of those that may follow each."""
    from tr_mmap.protocol.status import TRANSITIONS as FOLLOWING
    from tr_mmap.protocol.status import Status

    rows = [
        f"| `{word}` | {', '.join(f'`{next_word}`' for next_word in Status if next_word in FOLLOWING[word])} |"
        for word in Status
    ]
    return "\n".join(["| after | may come |", "|---|---|", *rows])


# -- navigation ------------------------------------------------------------------------------------------------------


def navigation() -> list[Any]:
    """The lists of docs/index.md: a section for each heading, an entry for each item.

    An item may name more pages after its first, which are then listed below it. An item that names the index of a
    folder stands for all pages of the folder, in the order in which that index names them.
    """
    sections: list[Any] = []
    for part in (ROOT / CONTENTS).read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        entries = [_entry(item) for item in re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE)]
        if len(entries) == 1 and isinstance(pages := next(iter(entries[0].values())), list):
            sections.append({heading: pages})  # a section that is a folder
        elif entries:
            sections.append({heading: entries})
    first = next(iter(sections[0].values()))
    first.insert(0, {"What it is": TOP["README.md"]})
    first.append({"All pages and examples": site_path(CONTENTS)})
    return sections


def _entry(item: str) -> dict[str, Any]:
    pages = [
        (title, site_path(_resolve(link, CONTENTS))) for title, link in re.findall(r"\[(.*?)\]\((.*?\.md)\)", item)
    ]
    title, path = pages[0]
    folder = posixpath.dirname(path)
    if posixpath.basename(path) == "index.md" and folder:
        index = (ROOT / DOCS / path).read_text(encoding="utf-8")
        named = [name for name in re.findall(r"\]\(([\w.-]+\.md)", index) if (ROOT / DOCS / folder / name).exists()]
        others = sorted(each.name for each in (ROOT / DOCS / folder).glob("*.md") if each.name != "index.md")
        return {title: [path, *(f"{folder}/{name}" for name in dict.fromkeys([*named, *others]))]}
    if len(pages) == 1:
        return {title: path}
    return {title: [{"Overview": path}, *({name[:1].upper() + name[1:]: more} for name, more in pages[1:])]}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the navigation."""
    config.nav = navigation()
    return config
