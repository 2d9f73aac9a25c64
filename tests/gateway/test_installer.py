"""The steps of an installation, one by one: what may change between them, and what an installer sees."""

from __future__ import annotations

import os
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wheels import make_wheel

from tr_mmap.errors import HostilePath, MissingPackage
from tr_mmap.gateway import installer as installers
from tr_mmap.gateway import package_trees
from tr_mmap.gateway.environments import Environments, Work, hash_of
from tr_mmap.gateway.errors import BadDependency, InstallFailed
from tr_mmap.gateway.installer import Installer, find_uv
from tr_mmap.gateway.requirements import read_lock
from tr_mmap.gateway.sections import DependenciesConfig


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    make_wheel(tmp_path / "wheels", "greetings", "1.0")
    return tmp_path / "wheels"


@pytest.fixture
def installer(wheels: Path) -> Iterator[Installer]:
    made = Installer(DependenciesConfig(wheel_dir=str(wheels)), find_uv(), sys.executable)
    yield made
    made.close()


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    return Environments(str(tmp_path / "cache"), 1 << 30, lambda _: None)


@pytest.fixture
def work(environments: Environments) -> Iterator[Work]:
    with environments.work() as made:
        yield made


def test_a_wheel_that_has_changed_since_it_was_locked_is_refused(
    installer: Installer, wheels: Path, work: Work
) -> None:
    locked = installer.lock(["greetings"], {}, work.path, work.fd)
    make_wheel(wheels, "greetings", "1.0", {"greetings/__init__.py": "evil = True"})
    with pytest.raises(BadDependency, match=r"(?i)hash"):
        installer.install(locked, work.path, work.fd)


def test_an_installer_has_no_variable_and_no_configuration_of_ours(
    installer: Installer, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "others", "greetings", "9.0")
    make_wheel(tmp_path / "others", "evil", "1.0")
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX"):
        monkeypatch.setenv(name, str(tmp_path / "others"))
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    (locked,) = installer.lock(["greetings"], {}, work.path, work.fd)
    assert locked.version == "1.0"
    os.makedirs(os.path.join(work.path, "again"))
    with pytest.raises(BadDependency):
        installer.lock(["evil"], {}, os.path.join(work.path, "again"), work.fd)


def test_an_index_that_cannot_be_reached_is_no_fault_of_who_declares(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its proxy cannot reach it. No request leaves this machine."""
    with proxy_that_says(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n") as port:
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        made = Installer(DependenciesConfig(), find_uv(), sys.executable)
        with pytest.raises(InstallFailed, match="cannot be reached") as found:
            made.lock(["greetings"], {}, work.path, work.fd)
    assert found.value.retry_after_s > 0


@contextmanager
def proxy_that_says(answer: bytes) -> Iterator[int]:
    """The port of a proxy that gives all the same answer."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_only_an_index_s_installer_has_the_variables_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://evil")
    assert set(installers._environment("/t", has_index=False)) == {"PATH", "HOME", "TMPDIR", "LANG"}
    assert installers._environment("/t", has_index=True)["https_proxy"] == "http://proxy"
    assert "UV_DEFAULT_INDEX" not in installers._environment("/t", has_index=True)


def test_what_is_provided_is_taken_into_account_and_not_installed(
    installer: Installer, wheels: Path, work: Work
) -> None:
    make_wheel(wheels, "needs", "1.0", requires=["numpy>=2", "greetings"])
    locked = installer.lock(["needs"], {"numpy": "2.4.6+local.1"}, work.path, work.fd)
    assert [each.name for each in locked] == ["greetings", "needs"]
    os.makedirs(os.path.join(work.path, "again"))
    with pytest.raises(BadDependency, match="numpy"):
        installer.lock(["needs"], {"numpy": "1.26"}, os.path.join(work.path, "again"), work.fd)


def test_an_installer_that_was_closed_starts_nothing(installer: Installer, work: Work) -> None:
    installer.close()
    with pytest.raises(InstallFailed):
        installer.lock(["greetings"], {}, work.path, work.fd)


def test_an_installation_ends_at_its_time(wheels: Path, work: Work) -> None:
    os.mkfifo(wheels / "slow-1.0-py3-none-any.whl")  # it waits for somebody who writes it
    config = DependenciesConfig(wheel_dir=str(wheels), install_timeout_s=0.5)
    with pytest.raises(InstallFailed, match="install_timeout_s"):
        Installer(config, find_uv(), sys.executable).lock(["slow"], {}, work.path, work.fd)


@pytest.mark.parametrize(
    "text",
    [
        "greetings==1.0\n",
        "greetings @ https://a.example/x.whl --hash=sha256:" + "0" * 64,
        "-e .\n",
        "--index-url x\n",
    ],
)
def test_a_lock_with_what_is_not_pinned_by_its_hash_is_refused(text: str) -> None:
    with pytest.raises(InstallFailed):
        read_lock(text)


def test_another_python_or_platform_is_another_environment() -> None:
    locked = read_lock("greetings==1.0 \\\n    --hash=sha256:" + "0" * 64)
    found = {
        hash_of(locked, python) for python in ("cpython-311 3.11.7 linux-x86_64", "cpython-311 3.11.8 linux-x86_64")
    }
    assert len(found) == 2


def test_without_uv_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(MissingPackage, match="gateway"):
        find_uv()


# -- directories of environments -------------------------------------------------------------------------------------


def put(environments: Environments, installer: Installer, requirement: str = "greetings") -> str:
    with environments.work() as work:
        locked = installer.lock([requirement], {}, work.path, work.fd)
        installer.install(locked, work.path, work.fd)
        lease = environments.put(work, hash_of(locked, "python"), locked)
        lease.close()
        return lease.environment.hash


def test_two_who_make_the_same_environment_get_the_same(installer: Installer, environments: Environments) -> None:
    with environments.work() as work:
        locked = installer.lock(["greetings"], {}, work.path, work.fd)
        installer.install(locked, work.path, work.fd)
        hash_ = hash_of(locked, "python")
        assert put(environments, installer) == hash_  # meanwhile
        lease = environments.put(work, hash_, locked)
    assert [each.hash for each in environments.all()] == [hash_]
    assert os.listdir(lease.packages)
    lease.close()


def test_what_others_work_on_is_not_removed(environments: Environments, tmp_path: Path) -> None:
    with environments.work() as work:
        Environments(str(tmp_path / "cache"), 1 << 30, lambda _: None)  # as a second gateway starts
        assert os.path.isdir(work.path)
    (tmp_path / "cache" / ".new-0123456789abcdef" / "tmp").mkdir(parents=True)
    (tmp_path / "cache" / ".gone-0123456789abcdef").mkdir(mode=0o500)
    environments.sweep()
    assert os.listdir(tmp_path / "cache") == []


def test_what_another_process_uses_is_not_removed(installer: Installer, wheels: Path, tmp_path: Path) -> None:
    told: list[str] = []
    mine = Environments(str(tmp_path / "cache"), 1 << 30, told.append)
    hash_ = put(mine, installer)
    lease = mine.lease(hash_)
    assert lease is not None
    theirs = Environments(str(tmp_path / "cache"), 1, lambda _: None)
    make_wheel(wheels, "other", "1.0")
    with pytest.raises(InstallFailed, match="no room"):
        put(theirs, installer, "other")
    again = lease.again()
    lease.close()
    with pytest.raises(InstallFailed, match="no room"):
        put(theirs, installer, "other")
    assert os.listdir(again.packages)
    again.close()
    with pytest.raises(InstallFailed, match="no room"):
        put(theirs, installer, "other")
    assert mine.lease(hash_) is None
    assert told == []
    assert put(mine, installer) == hash_
    assert told == [lease.packages]  # for whoever has something open of the one that was there before


def test_what_is_neither_a_file_nor_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "passwords").symlink_to("/etc/passwd")
    with pytest.raises(BadDependency, match="passwords"):
        package_trees.clean(str(tmp_path))


def test_a_cache_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(HostilePath, match="others may write"):
        Environments(str(tmp_path), 1 << 30, lambda _: None)


def test_a_damaged_environment_is_removed_at_the_next_start(
    installer: Installer, environments: Environments, tmp_path: Path
) -> None:
    found = tmp_path / "cache" / put(environments, installer)
    found.chmod(0o700)
    (found / "environment.json").unlink()
    assert environments.lease(found.name) is None
    Environments(str(tmp_path / "cache"), 1 << 30, lambda _: None)
    assert not found.exists()
    assert put(environments, installer) == found.name
