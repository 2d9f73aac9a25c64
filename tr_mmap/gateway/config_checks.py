"""Which configurations cannot work, though each option by itself is one. Reads no file."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..wire.messages import EXIT_COMMAND, RELEASE_COMMAND

if TYPE_CHECKING:
    from .config import Config

__all__ = ["host_in_requests", "impossible", "is_reserved"]

_NAME: Final = re.compile(r"[A-Za-z0-9._\-]+")
_ORIGIN: Final = re.compile(r"https?://(?:[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?/?")
_RESERVED_PREFIX: Final = RELEASE_COMMAND[0]  # of what controllers ask for by themselves, now or in a later version


def impossible(config: Config) -> Iterator[tuple[str, str]]:
    """What cannot work: the key of an option, and why."""
    from packaging.utils import InvalidName, canonicalize_name  # which the clients' extra lacks

    server, sandbox = config.server, config.sandbox
    if sandbox.memory_mb > sandbox.most_memory_mb:
        yield "sandbox.memory_mb", f"{sandbox.memory_mb} is more than most_memory_mb, {sandbox.most_memory_mb}"
    if sandbox.cpu_cores > sandbox.most_cpu_cores:
        yield "sandbox.cpu_cores", f"{sandbox.cpu_cores} is more than most_cpu_cores, {sandbox.most_cpu_cores}"
    if server.host.startswith("["):
        yield "server.host", f"{server.host!r} has brackets, which belong to URLs; give the address alone"
    for each in server.allowed_hosts:
        if each != "*" and host_in_requests(each) is None:
            yield "server.allowed_hosts", f"{each!r:.80} is no host; give a name or an address alone, without a port"
    for each in server.allowed_origins:
        if not _ORIGIN.fullmatch(each):
            yield "server.allowed_origins", f'{each!r:.80} is no origin; give one as "https://example.org"'
    for each in server.trusted_proxies:
        if not _is_address_or_network(each):
            yield (
                "server.trusted_proxies",
                f'{each!r:.80} is no address or network; give one as "10.0.0.1" or "10.0.0.0/8"',
            )
    if not config.auth.audience:
        yield "auth.audience", "tokens are for an audience, and none can be for an empty one; give a name"
    for each in config.python.dependencies.allow:
        try:
            canonicalize_name(each, validate=True)
        except InvalidName:
            yield (
                "python.dependencies.allow",
                f"{each!r:.80} is no name of a package; leave out the version",
            )
    for name, worker in config.workers.items():
        for each in worker.commands:
            if is_reserved(each) or each.split() != [each]:
                why = "is a word of the worker's own protocol" if is_reserved(each) else "is not one word"
                yield f"workers.{name}.commands", f"{each!r:.80} {why}, and no request can ask for it"


def _is_address_or_network(text: str) -> bool:
    parse = ipaddress.ip_network if "/" in text else ipaddress.ip_address
    try:
        parse(text)
    except ValueError:
        return False
    return True


def is_reserved(command: str) -> bool:
    """Whether a command is the worker's service's own: no handler sees it, and ``exit`` ends the process."""
    word = command.strip()  # as the session does
    return word == EXIT_COMMAND or word.startswith(_RESERVED_PREFIX)


def host_in_requests(host: str) -> str | None:
    """A host as the header ``Host`` has it, without a port; None if it is none.

    Args:
        host: a name, or an address, of IPv6 with brackets or without.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare.partition("%")[0])
    except ValueError:
        return host.lower() if _NAME.fullmatch(host) else None
    return f"[{address}]" if address.version == 6 else str(address)
