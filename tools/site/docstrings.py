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
        """Turn the docstring of an object into Markdown."""
        if obj.docstring is not None:
            obj.docstring.value = _BLOCK.sub(
                ":", _ALONE.sub("", _ROLE.sub(lambda role: _link(role[1], obj), obj.docstring.value))
            )

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_more: Any) -> None:
        """Make the comment behind a constant its docstring. Drop the labels that say where it was assigned."""
        attr.labels -= {"class-attribute", "instance-attribute", "module-attribute"}
        if attr.docstring is None and isinstance(node, ast.AST) and attr.endlineno is not None:
            line = attr.lines_collection[attr.filepath][attr.endlineno - 1]
            _, mark, comment = line.rpartition("  # ")
            if mark and not comment.startswith(("type:", "noqa")):
                attr.docstring = griffe.Docstring(comment, parent=attr)

    def on_class(self, *, cls: griffe.Class, loader: griffe.GriffeLoader, **_more: Any) -> None:
        """Move the members of an enumeration into its docstring, as a list."""
        if cls.docstring is None or not any(str(base).endswith("Enum") for base in cls.bases):
            return
        members = [each for each in cls.members.values() if each.is_attribute and each.value is not None]
        rows = [
            f"- `{each.name}`, {_literal(each.value, loader)}" + (f": {each.docstring.value}" if each.docstring else "")
            for each in members
            if not each.name.startswith("_")
        ]
        cls.docstring.value += "\n\n" + "\n".join(rows)
        for each in members:
            cls.del_member(each.name)


def _literal(value: str | griffe.Expr, loader: griffe.GriffeLoader) -> str:
    """The value of an enumeration's member, looked up if it is a constant of another module."""
    if isinstance(value, griffe.Expr) and value.canonical_path in loader.modules_collection:
        return f"`{loader.modules_collection[value.canonical_path].value}`"
    return f"`{value}`"


def _link(name: str, obj: griffe.Object) -> str:
    """A name as code, which leads to its place in the reference if it has one."""
    path = name.removeprefix(".")
    try:
        path = obj.resolve(path)
    except griffe.NameResolutionError:
        pass
    return f'<autoref identifier="{path}" optional><code>{name.lstrip(".")}</code></autoref>'
