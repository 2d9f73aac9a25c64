"""Dependencies of the gateway's algorithms, installed from wheels that the tests write. Nothing is downloaded."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from blocking_clients import KINDS, client_of
from gateways import RunningGateway, configure, running, tr_mmap
from support import wait_until
from wheels import make_sdist, make_wheel

from tr_mmap.gateway.errors import BadDependency, BadRequest, Forbidden

ALGORITHMS = "/api/v1/python/algorithms"
DEPENDENCIES = "/api/v1/python/dependencies"
VERSION = "import greetings\noutput = greetings.__version__"
ALLOWED = (
    "greetings", "words", "needs-numpy", "with-pth", "with-sitecustomize", "with-script", "with-traversal", "sources",
    "broken", "shadow", "slow", "large", "larger",
)  # fmt: skip


def section(more: str = "", allow: tuple[str, ...] = ALLOWED) -> str:
    """The configuration; paths in it are meant from its own directory."""
    names = ", ".join(f'"{each}"' for each in allow)
    places = 'wheel_dir = "wheels"\ncache_dir = "cache"'
    return f"[python.dependencies]\nauto_install = true\nallow = [{names}]\n{places}\n{more}"


def environments(folder: Path) -> set[str]:
    """The names in a gateway's cache, those of what is half made or half removed included."""
    return set(os.listdir(folder / "cache"))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("dependencies")
    wheels = folder / "wheels"
    make_wheel(wheels, "greetings", "1.0", requires=["words>=1"])
    make_wheel(wheels, "greetings", "2.0", requires=["words>=1"])
    make_wheel(wheels, "words", "1.0")
    make_wheel(wheels, "unlisted", "1.0")
    make_wheel(wheels, "needs_numpy", "1.0", requires=["numpy>=2"])
    make_wheel(wheels, "needs_numpy", "0.1", requires=["numpy<2"])
    make_wheel(wheels, "broken", "1.0", requires=["unlisted"])
    with running(folder, section()) as started:
        yield started


def refused(gateway: RunningGateway, *dependencies: str, code: str = "output = 1") -> dict[str, Any]:
    """What is said of a registration whose dependencies are refused."""
    body = {"name": "refused", "code": code, "dependencies": dependencies}
    answer = gateway.ask("POST", ALGORITHMS, body)
    assert answer.status_code == 422, answer.text
    found: dict[str, Any] = answer.json()
    assert found["type"] == "BadDependency"
    assert not [each for each in environments(gateway.folder) if each.startswith(".")]
    return found


def used_by(gateway: RunningGateway, name: str) -> dict[str, Any]:
    """The environment of an algorithm."""
    (found,) = [each for each in gateway.ask("GET", DEPENDENCIES).json()["environments"] if name in each["used_by"]]
    return dict(found)


# -- what works ------------------------------------------------------------------------------------------------------


def test_an_algorithm_imports_what_it_declares_and_what_that_needs(gateway: RunningGateway) -> None:
    code = "import greetings, words\noutput = [greetings.__version__, words.__version__]"
    info = gateway.register("hello", code, dependencies=["greetings==2.0"])
    assert gateway.execute(algorithm="hello") == ["2.0", "1.0"]
    assert len(info["environment"]) == 64
    found = used_by(gateway, "hello")
    assert found["hash"] == info["environment"]
    assert found["packages"] == [{"name": "greetings", "version": "2.0"}, {"name": "words", "version": "1.0"}]
    assert found["nbytes"] > 0


def test_two_algorithms_have_different_versions_of_one_package(gateway: RunningGateway) -> None:
    first = gateway.register("first", VERSION, dependencies=["greetings==1.0"], reuse=True)
    second = gateway.register("second", VERSION, dependencies=["greetings==2.0"], reuse=True)
    for _ in range(2):
        assert gateway.execute(algorithm="first") == "1.0"
        assert gateway.execute(algorithm="second") == "2.0"
    assert first["version"] != second["version"]


def test_the_environment_is_part_of_the_version(gateway: RunningGateway) -> None:
    before = gateway.register("versioned", "output = 1", dependencies=["words"])
    assert gateway.register("versioned", "output = 1", dependencies=["words"])["version"] == before["version"]
    later = make_wheel(gateway.folder / "wheels", "words", "3.0")
    after = gateway.register("versioned", "output = 1", dependencies=["words"])
    later.unlink()
    assert (after["version"], after["environment"]) != (before["version"], before["environment"])


def test_the_same_packages_are_installed_once_however_they_are_declared(gateway: RunningGateway) -> None:
    found = {
        gateway.register(f"same{index}", "output = 1", dependencies=list(each))["environment"]
        for index, each in enumerate((("greetings==2.0",), ("Greetings >=1.5", "words"), ("words", "greetings==2.*")))
    }
    assert len(found) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_makes_an_environment_ahead_and_is_told_what_may_not_be(gateway: RunningGateway, kind: str) -> None:
    with client_of(kind, gateway.url, gateway.token("admin")) as client:
        made = client.make_environment(["greetings==2.0"], timeout_s=60)
        assert [(each.name, each.version) for each in made.packages] == [("greetings", "2.0"), ("words", "1.0")]
        assert client.make_environment(("greetings==2.0",)).hash == made.hash
        assert made.hash in {each.hash for each in client.dependencies().environments}
        with pytest.raises(BadDependency) as caught:
            client.make_environment(["unlisted"])
        assert caught.value.package == "unlisted"
        for wrong in ("greetings", [], [5], [object()]):
            with pytest.raises(BadRequest):
                client.make_environment(wrong)
    with client_of(kind, gateway.url, gateway.token("execute")) as client, pytest.raises(Forbidden):
        client.make_environment(["greetings==2.0"])


def test_what_is_imported_already_stays_and_is_not_installed(gateway: RunningGateway) -> None:
    code = "import numpy, needs_numpy\noutput = [needs_numpy.__version__, numpy.__version__]"
    info = gateway.register("numbers", code, dependencies=["needs-numpy"])
    here = gateway.execute(code="import numpy\noutput = numpy.__version__")
    assert gateway.execute(algorithm="numbers") == ["1.0", here]
    (found,) = [
        each for each in gateway.ask("GET", DEPENDENCIES).json()["environments"] if "numbers" in each["used_by"]
    ]
    assert [each["name"] for each in found["packages"]] == ["needs-numpy"]
    assert info["environment"] == found["hash"]
    assert "numpy" in refused(gateway, "needs-numpy==0.1")["error"]


def test_what_is_installed_here_and_fits_needs_no_environment(gateway: RunningGateway) -> None:
    for each in ("numpy>=1", "pandas", "nowhere; python_version < '3'", "numpy[extra]"):
        assert gateway.register("here", "output = 1", dependencies=[each])["environment"] is None
    refused(gateway, "pandas<1")


def test_an_environment_can_only_be_read(gateway: RunningGateway) -> None:
    info = gateway.register("reads", "import words\noutput = open(words.__file__, 'a')", dependencies=["words==1.0"])
    answer = gateway.ask("POST", "/api/v1/python/execute", {"algorithm": "reads"})
    assert (answer.status_code, answer.json()["details"]["rule"]) == (422, "write")
    root = gateway.folder / "cache" / info["environment"]
    for path in (root, *root.rglob("*")):
        assert not path.stat().st_mode & 0o277, path
    assert stat.S_IMODE((gateway.folder / "cache").stat().st_mode) == 0o700


def test_an_admin_makes_an_environment_ahead(gateway: RunningGateway) -> None:
    body = {"packages": ["words==1.0"]}
    assert gateway.ask("POST", DEPENDENCIES, body, scopes=("register", "execute")).status_code == 403
    made = gateway.ask("POST", DEPENDENCIES, body).json()
    assert made["packages"] == [{"name": "words", "version": "1.0"}]
    assert gateway.register("ahead", "output = 1", dependencies=["words==1.0"])["environment"] == made["hash"]
    listed = gateway.ask("GET", DEPENDENCIES, scopes=("execute",)).json()
    assert listed["auto_install"]
    assert listed["allow"] == sorted(ALLOWED)
    assert gateway.ask("POST", DEPENDENCIES, {"packages": []}).status_code == 400
    for installed in ("numpy", "pandas"):  # which algorithms find imported, and which they can import
        answer = gateway.ask("POST", DEPENDENCIES, {"packages": [installed]})
        assert (answer.status_code, answer.json()["hash"], answer.json()["packages"]) == (200, "", [])


def test_an_environment_that_is_there_is_described_with_who_uses_it_and_not_said_to_be_made(
    gateway: RunningGateway,
) -> None:
    packages = ["words==1.0", "needs-numpy==1.0"]
    made = gateway.ask("POST", DEPENDENCIES, {"packages": packages})
    assert (made.status_code, made.json()["used_by"]) == (201, [])
    hash_ = gateway.register("both", "output = 1", dependencies=packages)["environment"]
    answer = gateway.ask("POST", DEPENDENCIES, {"packages": packages})
    assert answer.status_code == 200, answer.text
    (listed,) = [each for each in gateway.ask("GET", DEPENDENCIES).json()["environments"] if "both" in each["used_by"]]
    assert (answer.json(), listed["hash"]) == (listed, hash_)
    gateway.ask("DELETE", f"{ALGORITHMS}/both")
    assert gateway.ask("POST", DEPENDENCIES, {"packages": packages}).json()["used_by"] == []


def test_registrations_of_the_same_dependencies_at_once_install_once(gateway: RunningGateway) -> None:
    make_wheel(gateway.folder / "wheels", "large", "1.0", {f"large/m{n}.py": f"x = {n}\n" for n in range(200)})
    seen = len(made_environments(gateway))
    with ThreadPoolExecutor(6) as pool:
        found = list(
            pool.map(
                lambda n: gateway.register(f"at_once{n}", "output = 1", dependencies=["large==1.0"])["environment"],
                range(6),
            )
        )
    assert len(set(found)) == 1
    wait_until(lambda: len(made_environments(gateway)) > seen)
    assert [each["environment"] for each in made_environments(gateway)[seen:]] == [found[0]]


def made_environments(gateway: RunningGateway) -> list[dict[str, Any]]:
    """What its log says of those that it has installed."""
    return [each for each in gateway.logged() if each["message"] == "an environment was made"]


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_package_that_is_not_allowed_is_refused_by_name(gateway: RunningGateway) -> None:
    found = refused(gateway, "unlisted==1.0")
    assert found["error"].startswith("unlisted may not be installed")
    assert found["details"]["package"] == "unlisted"


def test_a_package_that_an_allowed_one_needs_is_refused_by_name(gateway: RunningGateway) -> None:
    assert refused(gateway, "broken==1.0")["details"]["package"] == "unlisted"


@pytest.mark.parametrize(
    "dependency",
    [
        "greetings @ file:///etc/passwd",
        "./wheels/greetings-1.0-py3-none-any.whl",
        "--index-url=https://example.org/simple",
        "-r /etc/passwd",
        "greetings\n--index-url https://example.org/simple",
        'greetings; python_version < "4\n--index-url https://example.org/simple"',
        "-e .",
        "git+https://example.org/x",
        "",
        "greetings" + "=" * 300,
    ],
)
def test_what_is_no_package_with_a_version_is_refused(gateway: RunningGateway, dependency: str) -> None:
    package = refused(gateway, dependency)["details"]["package"]
    assert package == ("greetings" if " @ " in dependency else dependency[:80].replace("\n", ""))


def test_a_version_that_is_not_there_is_refused_without_the_names_of_places(gateway: RunningGateway) -> None:
    found = refused(gateway, "greetings==7.0")
    assert "greetings==7.0" in found["error"]
    assert str(gateway.folder) not in found["error"]
    assert found["details"]["package"] == "greetings"


def test_of_several_packages_the_one_that_is_not_there_is_named(gateway: RunningGateway) -> None:
    assert refused(gateway, "greetings", "words==9.9")["details"]["package"] == "words"


def test_a_directory_of_wheels_that_is_not_there_is_named_by_its_option(folder: Path) -> None:
    (folder / "wheels").mkdir()
    with running(folder, section()) as other:
        (folder / "wheels").rmdir()
        answer = other.ask("POST", DEPENDENCIES, {"packages": ["greetings"]})
    assert (answer.status_code, answer.json()["type"]) == (503, "InstallFailed")
    assert "[python.dependencies] wheel_dir" in answer.json()["error"]


def test_sources_are_never_built(gateway: RunningGateway) -> None:
    made = gateway.folder / "built"
    make_sdist(gateway.folder / "wheels", "sources", "1.0", f"open({str(made)!r}, 'w')")
    assert "sources" in refused(gateway, "sources==1.0")["error"]
    assert not made.exists()


def test_a_module_that_python_imports_at_its_start_is_refused(gateway: RunningGateway) -> None:
    files = {"with_sitecustomize/__init__.py": "", "sitecustomize.py": "raise SystemExit"}
    make_wheel(gateway.folder / "wheels", "with_sitecustomize", "1.0", files)
    found = refused(gateway, "with-sitecustomize")
    assert "sitecustomize.py" in found["error"]
    assert found["details"]["package"] == "with-sitecustomize"


def test_path_files_and_scripts_are_removed(gateway: RunningGateway) -> None:
    wheels = gateway.folder / "wheels"
    files = {
        "with_pth/__init__.py": "",
        "start.pth": "import os; os.abort()",
        "with_pth-1.0.data/data/other.pth": "import os; os.abort()",
        "with_pth-1.0.data/scripts/run.sh": "#!/bin/sh\n",
    }
    make_wheel(wheels, "with_pth", "1.0", files)
    make_wheel(wheels, "with_script", "1.0", scripts=["run = with_script:main"])
    made = gateway.ask("POST", DEPENDENCIES, {"packages": ["with-pth", "with-script"]}).json()
    assert made["removed"] == ["bin/", "other.pth", "start.pth"]
    packages = gateway.folder / "cache" / made["hash"] / "packages"
    assert not [*packages.rglob("*.pth"), *packages.rglob("bin"), *packages.rglob("run*")]
    gateway.register("cleaned", "import with_pth, with_script\noutput = 1", dependencies=["with-pth", "with-script"])
    assert gateway.execute(algorithm="cleaned") == 1


def test_a_path_that_leads_out_of_a_wheel_writes_nothing(gateway: RunningGateway) -> None:
    outside = gateway.folder / "outside.py"
    files = {"with_traversal/__init__.py": ""}
    for up in range(1, 12):
        files["../" * up + "outside.py"] = "x = 1"
        files[f"with_traversal-1.0.data/data/../{'../' * up}outside{up}.py"] = "x = 1"
    files[str(outside)] = "x = 1"
    make_wheel(gateway.folder / "wheels", "with_traversal", "1.0", files)
    before = {path for path in gateway.folder.rglob("*") if "cache" not in path.parts}
    made = gateway.ask("POST", DEPENDENCIES, {"packages": ["with-traversal"]}).json()
    assert {path for path in gateway.folder.rglob("*") if "cache" not in path.parts} == before
    found = {path.name for path in gateway.folder.rglob("outside*")}
    root = gateway.folder / "cache" / made["hash"] / "packages"
    assert found == {path.name for path in root.rglob("outside*")}
    assert {path.name for path in (gateway.folder / "cache").iterdir()} == environments(gateway.folder)


def test_a_package_of_the_name_of_one_that_is_preloaded_does_not_replace_it(gateway: RunningGateway) -> None:
    make_wheel(gateway.folder / "wheels", "shadow", "1.0", {"numpy/__init__.py": "raise SystemExit('shadow')"})
    gateway.register("shadowed", "import numpy\noutput = numpy.__name__", dependencies=["shadow"])
    assert gateway.execute(algorithm="shadowed") == "numpy"


# -- off by default --------------------------------------------------------------------------------------------------


def test_nothing_is_installed_by_default(folder: Path) -> None:
    make_wheel(folder / "wheels", "greetings", "1.0")
    with running(folder, '[python.dependencies]\nwheel_dir = "wheels"\ncache_dir = "cache"') as gateway:
        body = {"name": "x", "code": "output = 1", "dependencies": ["greetings==1.0"]}
        answer = gateway.ask("POST", ALGORITHMS, body)
        assert (answer.status_code, answer.json()["type"]) == (422, "MissingPackage")
        answer = gateway.ask("POST", DEPENDENCIES, {"packages": ["greetings"]})
        assert (answer.status_code, "auto_install" in answer.json()["error"]) == (403, True)
        answer = gateway.ask("POST", DEPENDENCIES, {"packages": ["numpy"]})
        assert (answer.status_code, answer.json()["hash"]) == (200, "")
        assert gateway.ask("GET", DEPENDENCIES).json() == {"auto_install": False, "allow": [], "environments": []}
    assert not (folder / "cache").exists()


def test_auto_install_needs_an_allow_list(folder: Path) -> None:
    configure(folder, "[python.dependencies]\nauto_install = true")
    done = tr_mmap("serve", "--config", folder / "tr_mmap.toml")
    assert (done.returncode, "allow" in done.stderr) == (2, True)


# -- the cache -------------------------------------------------------------------------------------------------------


def test_environments_that_nobody_uses_make_room_for_new_ones(folder: Path) -> None:
    half = {"data.txt": "x" * (700 << 10)}
    for version in ("1.0", "2.0", "3.0"):
        make_wheel(folder / "wheels", "large", version, {f"large/{name}": text for name, text in half.items()})
    make_wheel(folder / "wheels", "larger", "1.0", {"larger/data.txt": "x" * (3 << 20)})
    with running(folder, section("max_cache_mb = 2")) as gateway:
        path = "import large\noutput = len(list(large.__path__))"
        first = gateway.register("first", path, dependencies=["large==1.0"])["environment"]
        second = gateway.register("second", path, dependencies=["large==2.0"])["environment"]
        assert gateway.execute(algorithm="first") == gateway.execute(algorithm="second") == 1
        answer = gateway.ask("POST", DEPENDENCIES, {"packages": ["large==3.0"]})
        assert (answer.status_code, answer.json()["type"]) == (503, "InstallFailed")
        assert environments(folder) == {first, second}
        gateway.ask("DELETE", f"{ALGORITHMS}/first")
        third = gateway.ask("POST", DEPENDENCIES, {"packages": ["large==3.0"]}).json()["hash"]
        assert environments(folder) == {second, third}
        assert gateway.execute(algorithm="second") == 1
        again = gateway.register("first", path, dependencies=["large==1.0"])["environment"]
        assert again == first
        assert environments(folder) == {first, second}
        assert gateway.execute(algorithm="first") == 1
        assert gateway.ask("POST", DEPENDENCIES, {"packages": ["larger"]}).status_code == 503


def test_environments_are_there_after_a_restart(folder: Path) -> None:
    make_wheel(folder / "wheels", "greetings", "1.0")
    found = []
    for _ in range(2):
        with running(folder, section()) as gateway:
            found.append(gateway.register("hello", VERSION, dependencies=["greetings"])["environment"])
            assert gateway.execute(algorithm="hello") == "1.0"
            found.append(len(made_environments(gateway)))
    assert found[0] == found[2]
    assert found[1::2] == [1, 0]


# -- installers and gateways that are killed -------------------------------------------------------------------------


class _Killed(Exception):
    """To leave ``running``, which expects that its gateway ends well."""


def installers(folder: Path) -> list[psutil.Process]:
    """The processes of uv that work in a gateway's cache."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.cwd().startswith(str(folder / "cache")) and process.name() == "uv"
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if is_ours:
            found.append(process)
    return found


def make_stuck_wheel(folder: Path) -> None:
    """One that can be opened only when somebody else writes it: its installer waits for that."""
    (folder / "wheels").mkdir()
    os.mkfifo(folder / "wheels" / "slow-1.0-py3-none-any.whl")


def test_installers_and_gateways_that_are_killed_leave_nothing(folder: Path) -> None:
    make_stuck_wheel(folder)
    make_wheel(folder / "wheels", "greetings", "1.0")
    with suppress(_Killed), running(folder, section()) as gateway, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gateway.ask, "POST", DEPENDENCIES, {"packages": ["slow"]})
        wait_until(lambda: installers(folder))
        for each in installers(folder):
            each.send_signal(signal.SIGKILL)
        found = answer.result()
        assert (found.status_code, found.json()["type"]) == (503, "InstallFailed")
        assert "retry-after" in found.headers
        assert environments(folder) == set()

        whole = gateway.register("hello", VERSION, dependencies=["greetings"])["environment"]
        assert gateway.execute(algorithm="hello") == "1.0"
        answer = pool.submit(gateway.ask, "POST", DEPENDENCIES, {"packages": ["slow"]})
        wait_until(lambda: installers(folder))
        gateway.process.kill()
        assert isinstance(answer.exception(), httpx.TransportError)
        assert gateway.end() == -signal.SIGKILL
        raise _Killed
    wait_until(lambda: not installers(folder))
    assert len(environments(folder)) == 2
    with running(folder, section()):
        assert environments(folder) == {whole}


def test_a_gateway_killed_while_packages_are_written_leaves_all_or_nothing(folder: Path) -> None:
    files = {f"large/m{number}.py": f"x = {number}\n" for number in range(500)}
    make_wheel(folder / "wheels", "large", "1.0", files)
    with suppress(_Killed), running(folder, section()) as gateway, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gateway.ask, "POST", DEPENDENCIES, {"packages": ["large"]})
        wait_until(lambda: [*(folder / "cache").glob("*/packages/large")])
        gateway.process.kill()
        assert answer.exception() is None or isinstance(answer.exception(), httpx.TransportError)
        assert gateway.end() == -signal.SIGKILL
        raise _Killed
    wait_until(lambda: not installers(folder))
    with running(folder, section()) as gateway:
        left = environments(folder)
        assert not [each for each in left if each.startswith(".")]
        made = gateway.register("all", "import large.m499\noutput = large.m499.x", dependencies=["large"])
        assert left <= {made["environment"]}
        assert gateway.execute(algorithm="all") == 499


def test_the_end_of_a_gateway_ends_its_installers(folder: Path) -> None:
    make_stuck_wheel(folder)
    with running(folder, section(), server="drain_s = 0.2") as gateway, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gateway.ask, "POST", DEPENDENCIES, {"packages": ["slow"]})
        wait_until(lambda: installers(folder))
        gateway.process.send_signal(signal.SIGTERM)
        assert answer.exception() is not None or answer.result().status_code >= 500
        gateway.process.wait(60)
        assert not installers(folder)
        assert environments(folder) == set()
