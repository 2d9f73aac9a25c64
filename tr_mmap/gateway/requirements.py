"""What algorithms declare that they need, and what uv makes of it: texts, read strictly. Runs nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from .errors import BadDependency, InstallFailed

__all__ = [
    "Locked",
    "are_installed",
    "check_allowed",
    "lock_text",
    "name_of",
    "read_lock",
    "read_requirements",
    "version_here",
]

_MOST: Final = 64
_MOST_CHARACTERS: Final = 300
_ENTRY: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;@\\]+)(?P<hashes>(?:\s+--hash=sha256:[0-9a-f]{64})+)"
)


@dataclass(frozen=True, slots=True)
class Locked:
    """One package of a lock.

    Attributes:
        name: as it is compared: in lower case, with hyphens.
        version: just this one.
        hashes: ``sha256:...`` of the files that it may come from, sorted.
    """

    name: str
    version: str
    hashes: tuple[str, ...]


def read_requirements(texts: Iterable[str]) -> tuple[str, ...]:
    """What is declared, in one form: sorted, each once.

    Raises:
        BadDependency: one of them is none, or names a place instead of a version.
    """
    found = set()
    for text in texts:
        if len(text) > _MOST_CHARACTERS or not text.isprintable():
            raise BadDependency(
                f"{text!r:.80} is no dependency: one is printable, and has {_MOST_CHARACTERS} characters at most",
                package=_shown(text),
            )
        try:
            each = Requirement(text)
            if each.marker is not None:
                each.marker.evaluate()  # one that compares what cannot be compared is found only so
        except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
            why = f'{text!r:.80} is no dependency; "humanize==4.17.0" is one'
            raise BadDependency(why, package=_shown(text)) from None
        if each.url is not None:
            raise BadDependency(
                f"{each.name} names the place {each.url!r:.80}, and packages come from the gateway's own index: name a "
                "version",
                package=each.name,
            )
        each.name = canonicalize_name(each.name)
        found.add(str(each))
    if len(found) > _MOST:
        raise BadDependency(f"{len(found)} dependencies are declared, and an algorithm may have {_MOST}")
    return tuple(sorted(found))


def _shown(text: str) -> str:
    """What stands for the name of a package, where there is none."""
    return "".join(each for each in text[:80] if each.isprintable())


def name_of(requirement: str) -> str:
    """The package of one of :func:`read_requirements`."""
    return canonicalize_name(Requirement(requirement).name)


def version_here(name: str) -> str | None:
    """The version of a package that is installed for this interpreter; None if none is."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def are_installed(
    requirements: Iterable[str],
    version_of: Callable[[str], str | None] = version_here,
    markers: Mapping[str, str] | None = None,
) -> bool:
    """Whether all are installed, in versions that fit.

    Args:
        requirements: as :func:`read_requirements` gives them.
        version_of: says which version of a package is installed.
        markers: what the interpreter is, where it is not this one.
    """
    for each in map(Requirement, requirements):
        if each.marker is not None and not each.marker.evaluate(dict(markers) if markers else None):
            continue
        if each.extras:
            return False
        version = version_of(each.name)
        if version is None or not each.specifier.contains(version, prereleases=True):
            return False
    return True


def read_lock(text: str) -> tuple[Locked, ...]:
    """What uv has locked, sorted by name.

    Raises:
        InstallFailed: a line of it is not as it is known here: it has no hash, or names a place.
    """
    found = []
    for entry in text.replace("\\\n", " ").splitlines():
        if not entry.strip() or entry.lstrip().startswith("#"):
            continue
        match = _ENTRY.fullmatch(entry.strip())
        if match is None:
            raise InstallFailed(f"uv has locked what is not known here: {entry!r:.200}", retry_after_s=60.0)
        hashes = tuple(sorted(each.removeprefix("--hash=") for each in match["hashes"].split()))
        found.append(Locked(canonicalize_name(match["name"]), match["version"], hashes))
    return tuple(sorted(found, key=lambda each: each.name))


def lock_text(locked: Iterable[Locked]) -> str:
    """A lock as uv reads it; the same text for the same packages."""
    return "".join(
        f"{each.name}=={each.version}{''.join(f' --hash={digest}' for digest in each.hashes)}\n" for each in locked
    )


def check_allowed(names: Iterable[str], allow: Collection[str]) -> None:
    """
    Args:
        names: of packages.
        allow: names of those that may be installed.

    Raises:
        BadDependency: one of them is not among these.
    """
    known = {canonicalize_name(each) for each in allow}
    refused = sorted({each for each in names if each not in known})
    if refused:
        raise BadDependency(
            f"{', '.join(refused)} may not be installed here: not in [python.dependencies] allow",
            package=refused[0],
        )
