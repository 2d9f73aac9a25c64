"""The public names of the C++ headers: those of the namespace ``tr``, and the public members of its types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["public_names"]

_TYPE: Final = re.compile(r"\b(?:enum class|class|struct) (\w+)(?: final)?(?: :[^:].*)?$", re.DOTALL)
_OPERATOR: Final = re.compile(r"\boperator\b")


def public_names(folder: Path) -> dict[str, set[str]]:
    """By type, the names of its members, fields and enumerators; those of the namespace itself by ""."""
    found: dict[str, set[str]] = {"": set()}
    of_details: dict[str, set[str]] = {"": set()}
    bases: dict[str, str] = {}
    for path in sorted(folder.glob("*.hpp")):
        text = re.sub(r"//.*|^ *#.*(?:\\\n.*)*", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        text = re.sub(r'"(?:\\.|[^"\\\n])*"', '""', text)
        text = re.sub(r"'(?:\\.|[^'\\\n])'|(?<== ){}", "0", text).replace("decltype(auto)", "auto")
        _read(text, 0, ["file"], found)
        for details in re.finditer(r"^namespace detail {", text, re.MULTILINE):
            _read(text[details.end() : _end_of(text, details.end()) - 1], 0, ["tr"], of_details)
        bases |= dict(re.findall(r"^(?:class|struct) (\w+) : public (?:detail::)?(Session\w+)", text, re.MULTILINE))
    for name in found.keys() & bases.keys():
        base = name
        while (base := bases.get(base, "")) != "":
            found[name] |= of_details[base]
    return {name: members for name, members in found.items() if members or name == ""}


def _end_of(text: str, start: int) -> int:
    """Where a block ends that begins before ``start``."""
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _read(text: str, at: int, scope: list[str], found: dict[str, set[str]]) -> None:
    is_enum = scope[-1].startswith("enum ")
    if is_enum:
        found[scope[-1][5:]] = set(re.findall(r"(?:^|,)\s*(\w+)", text))
        return
    is_public = not scope[-1].startswith("class ")
    while (match := re.compile(r"[;{]|\b(public|private|protected):").search(text, at)) is not None:
        head, start = text[at : match.start()].strip(), match.end()
        if match[1]:
            is_public, at = match[1] == "public", start
            continue
        end = _end_of(text, start) if match[0] == "{" else start
        if match[0] == "{" and (space := re.fullmatch(r"namespace (\w+)", head)):
            if scope == ["file"] and space[1] == "tr":
                _read(text[start : end - 1], 0, ["tr"], found)
        elif scope != ["file"]:
            at = _note(text, head, (start, end), scope, is_public, found)
            continue
        at = end


def _note(
    text: str, head: str, body: tuple[int, int], scope: list[str], is_public: bool, found: dict[str, set[str]]
) -> int:
    """Note a declaration; where the next one begins."""
    start, end = body
    own = "" if scope == ["tr"] else scope[-1].split()[1]
    plain = re.sub(r"^template <[^;{]*?>\s*(?=\w)", "", re.sub(r"\[\[\w+\]\]", "", head)).strip()
    kind = _TYPE.search(plain) if start != end else None
    if kind is not None and "(" not in plain.split(kind[1])[0]:
        if not own and not plain.startswith("friend"):
            found[""].add(kind[1])
            found[kind[1]] = set()
            word = "enum" if "enum class" in plain else "class" if re.search(r"\bclass\b", plain) else "struct"
            _read(text[start : end - 1], 0, [*scope, f"{word} {kind[1]}"], found)
        return text.find(";", end - 1) + 1
    name = _name_of(plain)
    if name and is_public and name != own:
        found[own].add(name)
    if start == end:
        return end
    rest = re.compile(r"\s*[,;]?").match(text, end)
    assert rest is not None
    if re.search(r"\)\s*:[^:]", plain) and re.match(r"\s*[,{]", text[end:]):  # a constructor's members in braces
        return _end_of(text, text.index("{", end) + 1)
    return rest.end()


def _name_of(declaration: str) -> str:
    """What a declaration declares; "" if that has no name of its own."""
    if not declaration or _OPERATOR.search(declaration) or re.match(r"friend|static_assert|extern|~|#", declaration):
        return ""
    if alias := re.match(r"using (\w+) =", declaration):
        return alias[1]
    if declaration.startswith(("using", "class", "struct", "typedef")):
        return ""
    call = re.search(r"([~\w]+)\(", re.sub(r"<[^<>()]*>", "", re.sub(r"<[^<>]*>", "", declaration)))
    if call is not None:
        is_method_of_another = re.search(r"\w::" + re.escape(call[1]) + r"\(", declaration) is not None
        return "" if "~" in call[1] or is_method_of_another else call[1]
    value = re.search(r"(\w+)(?:\[\w*\])?\s*(?:=.*)?$", declaration, re.DOTALL)
    return value[1] if value and " " in declaration else ""
