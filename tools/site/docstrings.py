"""Docstrings as Markdown, and the comments behind constants. For griffe, which mkdocstrings uses; reads code only.

The docstrings of this package are prose with a little reStructuredText: ``::`` before a block, roles such as
``:class:`Name```. Each becomes what Markdown has for it. A constant or a member of an enumeration that has no docstring
takes the comment behind it.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|mod|func|meth|attr|data|exc):`~?([\w.]+)`")
_BLOCK = re.compile(r"::$", re.MULTILINE)
_ALONE = re.compile(r"^[ \t]*::\n", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Mends each docstring when its object is made."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """A docstring of its own, in Markdown."""
        if obj.docstring is not None:
            obj.docstring.value = _BLOCK.sub(
                ":", _ALONE.sub("", _ROLE.sub(lambda role: _link(role[1], obj), obj.docstring.value))
            )

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_more: Any) -> None:
        """The comment behind a constant, as its docstring."""
        if attr.docstring is None and isinstance(node, ast.AST) and attr.endlineno is not None:
            line = attr.lines_collection[attr.filepath][attr.endlineno - 1]
            _, mark, comment = line.rpartition("  # ")
            if mark and not comment.startswith(("type:", "noqa")):
                attr.docstring = griffe.Docstring(f"{comment[:1].upper()}{comment[1:]}.", parent=attr)


def _link(name: str, obj: griffe.Object) -> str:
    """A name as code, which leads to its place in the reference if it has one."""
    path = name.removeprefix(".")
    try:
        path = obj.resolve(path)
    except griffe.NameResolutionError:
        pass
    return f'<autoref identifier="{path}" optional><code>{name.lstrip(".")}</code></autoref>'
