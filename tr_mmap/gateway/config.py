"""The configuration of a gateway: a TOML file with a section for each part. Opens that file, and nothing else."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
import tomllib
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import msgspec
from msgspec import field

from ..wire.names import DEFAULT_WORKER
from .api import Name
from .complaints import explain
from .config_checks import impossible
from .errors import BadConfig
from .sections import (
    AuthConfig,
    PythonConfig,
    SandboxConfig,
    SchedulerConfig,
    Section,
    ServerConfig,
    SharedMemoryConfig,
    StoreConfig,
    WorkerConfig,
)

__all__ = ["Config", "is_loopback", "is_version"]

_UNKNOWN: Final = re.compile(r"object contains unknown field `(?P<name>.*)`")


class Config(Section, frozen=True):
    """A whole configuration. A path in it that is not absolute is meant from the directory of its file."""

    server: ServerConfig = field(default_factory=ServerConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    python: PythonConfig = field(default_factory=PythonConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    sharedmemory: SharedMemoryConfig = field(default_factory=SharedMemoryConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    workers: dict[Name, WorkerConfig] = field(default_factory=dict)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Config:
        """Read a file.

        Raises:
            BadConfig: it cannot be read, or an option is unknown or wrong; one line says which.
        """
        name = os.fspath(path)
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise BadConfig(f"{name} cannot be read: {why}", path=name) from error
        try:
            options = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise BadConfig(f"{name} is no TOML: {error}", path=name) from error
        return cls.from_dict(options, base=Path(name).resolve().parent, name=name)

    @classmethod
    def from_dict(cls, options: dict[str, Any], *, base: Path | None = None, name: str = "the configuration") -> Config:
        """From options by section, as TOML gives them.

        Args:
            options: by section.
            base: the directory from which paths are meant; the current one if left out.
            name: of the file, for errors.

        Raises:
            BadConfig: an option is unknown or wrong.
        """
        try:
            config = msgspec.convert(options, cls)
        except msgspec.ValidationError as error:
            key, why = _explain(str(error), options)
            raise BadConfig(f"{name}: {key + ': ' if key else ''}{why}", key=key, path=name) from error
        config = _with_paths(config, base or Path.cwd())
        _check(config, name)
        return config


def _explain(text: str, options: dict[str, Any]) -> tuple[str, str]:
    """The option's key, and what is wrong, of a message of msgspec's."""
    key, why = explain(text, Config, options)
    unknown = _UNKNOWN.fullmatch(why)
    if not unknown:
        return key, why
    section: Any = Config
    for part in key.split("."):
        section = {each.name: each.type for each in msgspec.structs.fields(section)}.get(part, section)
        section = get_args(section)[1] if get_origin(section) is dict else section
    known = ", ".join(each.name for each in msgspec.structs.fields(section))
    return f"{key}.{unknown['name']}".lstrip("."), f"there is no such option; there are {known}"


def _with_paths(config: Config, base: Path) -> Config:
    def at(path: str | None) -> str | None:
        return None if path is None else str(base / Path(path).expanduser())

    def program(name: str) -> str:
        """Names without a directory are looked for on ``PATH``."""
        return str(base / Path(name).expanduser()) if os.path.dirname(name) else name

    replace = msgspec.structs.replace
    python = config.python
    return replace(
        config,
        server=replace(
            config.server, tls_certificate=at(config.server.tls_certificate), tls_key=at(config.server.tls_key)
        ),
        auth=replace(config.auth, key_file=at(config.auth.key_file), audit_log=at(config.auth.audit_log)),
        python=replace(
            python,
            python_path=program(python.python_path),
            dependencies=replace(
                python.dependencies,
                cache_dir=str(base / Path(python.dependencies.cache_dir).expanduser()),
                wheel_dir=at(python.dependencies.wheel_dir),
            ),
            models=replace(python.models, model_dir=at(python.models.model_dir)),
        ),
        store=replace(config.store, dir=at(config.store.dir)),
        workers={
            name: replace(
                each,
                script=each.script if each.script == DEFAULT_WORKER else str(base / Path(each.script).expanduser()),
                python=program(each.python),
            )
            for name, each in config.workers.items()
        },
    )


def _check(config: Config, name: str) -> None:
    """What no type says."""

    def wrong(key: str, why: str) -> BadConfig:
        return BadConfig(f"{name}: {key}: {why}", key=key, path=name)

    for key, why in impossible(config):
        raise wrong(key, why)
    server, python = config.server, config.python
    if (server.tls_certificate is None) != (server.tls_key is None):
        raise wrong("server.tls_key", "a certificate and its key belong together: give tls_certificate and tls_key")
    if not is_loopback(server.host) and server.tls_certificate is None and not server.allow_plain_http:
        raise wrong(
            "server.host",
            f"{server.host!r} is beyond loopback, and tokens would cross the network unencrypted: give tls_certificate "
            "and tls_key, or allow_plain_http = true behind a proxy that does TLS",
        )
    if python.dependencies.auto_install and not python.dependencies.allow:
        raise wrong(
            "python.dependencies.auto_install",
            'whoever may register could install anything: list what may be installed, as allow = ["humanize"]',
        )
    own = platform.python_version()
    if not is_version(own, python.version) and not python.python_path:
        raise wrong(
            "python.version", f"this is Python {own}; give python_path of a Python {python.version}, or leave it out"
        )


def is_version(version: str, wanted: str) -> bool:
    """Whether a version, as ``3.11.4``, is the one that was asked for, as ``3.11``; empty for any."""
    return not wanted or (version + ".").startswith(wanted.rstrip(".") + ".")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
