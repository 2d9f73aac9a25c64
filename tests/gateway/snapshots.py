"""What others rely on: the public names, the OpenAPI document, the configuration. Kept in ``snapshots/``.

python tests/gateway/snapshots.py            # writes them anew, when a change is meant
"""

from __future__ import annotations

import enum
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "snapshots"
RENEW = "if this is meant: python tests/gateway/snapshots.py"


def public_names() -> dict[str, Any]:
    """Each public name of ``tr_mmap.gateway``, with its members' signatures."""
    import tr_mmap.gateway as gateway

    return {name: _describe(getattr(gateway, name)) for name in sorted(gateway.__all__)}


def _describe(found: Any) -> Any:
    if not inspect.isclass(found):
        return _signature(found) if callable(found) else type(found).__name__
    if issubclass(found, enum.Enum):
        return sorted(found.__members__)
    bases = [each.__name__ for each in found.__mro__[1:-1] if not each.__name__.startswith("_")]
    members: dict[str, Any] = {"()": _signature(found), "bases": bases}
    for name, member in sorted(vars(found).items()):
        if name.startswith("_"):
            continue
        plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if inspect.isfunction(plain):
            kind = "coroutine" if inspect.iscoroutinefunction(plain) else type(member).__name__
            members[name] = {"kind": kind, **_signature(plain)}
        else:
            members[name] = type(member).__name__
    return members


def _signature(found: Any) -> dict[str, Any]:
    """A function's parameters by name, those that have no default as ``required``, and what it returns."""
    signature = inspect.signature(found)
    parameters = {name: each for name, each in signature.parameters.items() if name not in ("self", "cls")}
    return {
        "parameters": {name: str(each).partition(" = ")[2] for name, each in parameters.items()},
        "types": {name: inspect.formatannotation(each.annotation) for name, each in parameters.items()},
        "kinds": {name: each.kind.description for name, each in parameters.items()},
        "required": [name for name, each in parameters.items() if each.default is each.empty],
        "returns": inspect.formatannotation(signature.return_annotation),
    }


def document() -> dict[str, Any]:
    """The OpenAPI document, without what is only there to be read."""
    from tr_mmap.gateway.openapi import describe_routes

    described: dict[str, Any] = _without_prose(describe_routes("0"))
    return described


def _without_prose(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {
            name: _without_prose(each)
            for name, each in value.items()
            if not (name in ("summary", "description", "examples", "title") and not isinstance(each, dict))
            and name != "examples"
        }
        return dict(sorted(kept.items()))
    return [_without_prose(each) for each in value] if isinstance(value, list) else value


def configuration() -> dict[str, Any]:
    """Each section's keys, with their types and defaults."""
    import msgspec

    from tr_mmap.gateway.config import Config

    def keys(section: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for each in msgspec.structs.fields(section):
            if isinstance(each.type, type) and issubclass(each.type, msgspec.Struct):
                found[each.name] = keys(each.type)
            else:
                default = each.default if each.default is not msgspec.NODEFAULT else "?"
                found[each.name] = {"type": msgspec.json.schema(each.type), "default": default}
        return found

    return keys(Config)


SNAPSHOTS = {"api": public_names, "openapi": document, "configuration": configuration}


def text_of(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every value by its path. Members of a list that are texts are told by themselves, not by their place."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from leaves(each, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for at, each in enumerate(value):
            is_plain = not isinstance(each, dict | list)
            yield from ([(f"{path}[{each}]", "")] if is_plain else leaves(each, f"{path}[{at}]"))
    else:
        yield path, json.dumps(value)


def breaks(former: Any, now: Any) -> list[str]:
    """What is not any more as somebody relied on it: a name is gone or changed, a field must be sent now."""
    old, new = dict(leaves(former)), dict(leaves(now))
    sent = types_sent(now)
    gone = [path for path in old.keys() - new.keys() if not (".required[" in path and _is_sent(path, sent))]
    changed = [path for path in old.keys() & new.keys() if old[path] != new[path]]
    demanded = [
        path
        for path in new.keys() - old.keys()
        if ".required[" in path and _is_sent(path, sent) and _was_there(path, former)
    ]
    return sorted(
        [f"{path} is gone" for path in gone]
        + [f"{path} was {old[path]}, and is {new[path]}" for path in changed]
        + [f"{path} is new" for path in demanded]
    )


def types_sent(document: Any) -> set[str]:
    """The types of an OpenAPI document that are in bodies of requests."""
    found: set[str] = set()
    waiting = _references(document, is_sent=False)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting |= _references(document["components"]["schemas"][name], is_sent=True)
    return found


def _references(value: Any, *, is_sent: bool) -> set[str]:
    found: set[str] = set()
    if isinstance(value, dict):
        for name, each in value.items():
            if is_sent and name == "$ref":
                found.add(each.rpartition("/")[2])
            found |= _references(each, is_sent=is_sent or name == "requestBody")
    elif isinstance(value, list):
        for each in value:
            found |= _references(each, is_sent=is_sent)
    return found


def _is_sent(path: str, sent: set[str]) -> bool:
    """Whether what is required there is required of who asks or calls; else it is promised to them."""
    _, is_schema, rest = path.partition("components.schemas.")
    return not is_schema or rest.partition(".")[0] in sent


def _was_there(path: str, former: Any) -> bool:
    """Whether a type was there before; the fields of a new one are no news."""
    found = former
    for part in path.partition(".required[")[0].strip(".").split("."):
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return True


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, make in SNAPSHOTS.items():
        (FOLDER / f"{name}.json").write_text(text_of(make()))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
