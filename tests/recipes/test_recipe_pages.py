"""The pages of the recipes: their programs are those that the tests run, and their links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from recipes import EXAMPLES, PAGES, ROOT

NAMES = sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index")
_BLOCK = re.compile(r'^```\w+ title="(.*?)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(name: str) -> dict[str, str]:
    """What a page says of each file."""
    found = _BLOCK.findall((PAGES / f"{name}.md").read_text(encoding="utf-8"))
    assert len(dict(found)) == len(found), "two blocks have the same title"
    return dict(found)


def files(name: str) -> dict[str, str]:
    """The files of a recipe, each as its page shows it; a notebook cell by cell."""
    found = {}
    for path in (EXAMPLES / name).iterdir():
        if path.is_dir():  # of bytecode
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = [each for each in json.loads(text)["cells"] if each["cell_type"] == "code"]
            for number, cell in enumerate(cells, 1):
                found[f"{path.name}, cell {number}"] = "".join(cell["source"]) + "\n"
        else:
            found[path.name] = text
    return found


def test_every_recipe_has_a_page_and_is_in_the_list() -> None:
    listed = re.findall(r"\]\(([\w-]+)\.md\)", (PAGES / "index.md").read_text(encoding="utf-8"))
    assert sorted(listed) == NAMES == sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_each_file_of_its_recipe_as_it_is_run(name: str) -> None:
    shown = blocks(name)
    elsewhere = {text for other in NAMES if other != name for text in blocks(other).values()}  # a page links to these
    assert shown == {title: text for title, text in files(name).items() if title in shown or text not in elsewhere}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_short_and_says_how_to_run_it_and_what_can_go_wrong(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 160
    assert "\n## Run it\n\n```sh\n" in text
    assert "\n## If something is wrong\n\n| symptom | cause and cure |\n" in text


@pytest.mark.parametrize("name", [*NAMES, "index"])
def test_every_link_of_a_recipe_leads_somewhere(name: str) -> None:
    page = PAGES / f"{name}.md"
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [each for each in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in each]
    assert [each for each in targets if not (PAGES / each.partition("#")[0]).resolve().exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_paths_of_the_commands_exist(name: str) -> None:
    commands = "\n".join(re.findall(r"^    (.*)", (PAGES / f"{name}.md").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"examples/recipes/[\w./-]+", commands)
    assert [each for each in named if not (ROOT / each).exists()] == []
    folder = re.search(r"cd (\S+)", commands)
    if folder is not None:
        for each in re.findall(r"(?<= )[\w-]+\.(?:py|cpp|ipynb)\b", commands):
            assert Path(ROOT, folder[1], each).exists(), each
