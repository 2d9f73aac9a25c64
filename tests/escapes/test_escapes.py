"""Every attack is denied in the sandbox, with a typed error that names the rule; and works without it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS, Attack
from environments import ENVIRONMENTS, Environment, machines, run_in
from support import once_a_run

from tr_mmap.sandbox import Allow, Limits, Sandbox, SandboxBroken
from tr_mmap.sandbox.host import Host
from tr_mmap.sandbox.kinds import KINDS


@once_a_run
def results_in(environment: Environment) -> tuple[list[str], dict[str, Any]]:
    layers, results = json.loads(run_in(environment, "attack_all"))
    return layers, results


@pytest.mark.parametrize("environment", machines("as it is", "no Landlock", "nobody"))
def test_the_layers_that_are_active_are_published(environment: Environment) -> None:
    layers, _ = results_in(environment)
    assert not environment.missing & set(layers)
    assert {"seccomp", "rlimits", "no_new_privs", "capabilities"} <= set(layers)


@pytest.mark.parametrize("environment", machines("as it is", "no Landlock", "nobody"))
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)
def test_an_attack_is_denied_by_name(attack: Attack, environment: Environment) -> None:
    layers, results = results_in(environment)
    attack.check(layers, results[attack.id])


@pytest.mark.parametrize("attack", [each for each in ATTACKS if each.control != ""], ids=lambda attack: attack.id)
def test_the_same_attack_works_without_the_sandbox(attack: Attack) -> None:
    if attack.is_for_root and os.geteuid() != 0:
        pytest.skip("NOT TESTED: controls of attacks that work for root only; run the tests as root")
    code = attack.code if attack.control is None else attack.control
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("environment", machines("as it is", "no Landlock", "nobody"))
def test_a_process_has_nothing_of_its_host_but_its_work(environment: Environment) -> None:
    descriptors, variables, (arguments, paths, frames) = json.loads(run_in(environment, "look_around"))
    assert sorted(descriptors) == [
        "device",
        *["file"] * 6,
        "socket",
    ]  # 3 areas, what is printed twice more, a mapping's
    assert "SECRET" not in variables
    assert "PYTHONPATH" not in variables
    assert all(each.isdigit() for each in arguments[arguments.index("-c") + 2 :]), arguments
    assert str(Path(__file__).parent) not in paths  # where this program's own modules are
    assert not [each for each in frames if "memory_nbytes=" in each and "memory_nbytes=None" not in each], frames
    assert variables["GRANTED"] == "yes"


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "environment", machines("no namespaces", "no Landlock", of=[each for each in ENVIRONMENTS if each.missing])
)
def test_22_a_missing_layer_refuses_to_start_by_name(environment: Environment, kind: str) -> None:
    layer = sorted(environment.missing)[0]
    layers, message = json.loads(run_in(environment, "refuse_to_start", kind, layer))
    assert layers == [layer]
    assert layer in message
    if kind == "contained":
        assert json.loads(run_in(environment, "refuse_to_start", kind, "seccomp")) is None


def test_a_size_of_a_private_directory_that_cannot_be_kept_is_refused() -> None:
    without = next(each for each in ENVIRONMENTS if "mount_namespace" in each.missing)
    layers, message = json.loads(run_in(without, "start_with_disk"))
    assert layers == ["mount_namespace"]
    assert "disk_nbytes" in message


def test_granted_variables_are_obeyed_by_nothing_that_is_not_contained(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'escaped')!r}, 'w').close()")
    env = {"PYTHONPATH": str(tmp_path), "LD_PRELOAD": str(tmp_path / "none.so"), "PYTHONVERBOSE": "1"}
    with pytest.raises(ValueError, match="PYTHONPATH"):
        Sandbox(allow=Allow(env=env))
    host = Host(Limits(), Allow(env=env), (), ["numpy"], 0)  # which does not look at their names
    try:
        assert host.is_alive()
        environment = Path(f"/proc/{host._zygote.pid}/environ").read_text()
        assert not [each for each in env if f"{each}=" in environment]
    finally:
        host.close()
    assert not (tmp_path / "escaped").exists()


def test_signals_that_the_host_ignores_are_not_ignored_in_its_sandbox() -> None:
    code = (
        "import os, signal\nfor each in (signal.SIGCHLD, signal.SIGALRM): signal.signal(each, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "from tr_mmap.sandbox import AlgorithmError, Sandbox\n"
        "with Sandbox(required_layers=()) as box:\n"
        "  for _ in range(4):\n"
        "    try: box.execute('import os; os.abort()')\n"
        "    except AlgorithmError as error: assert 'SIGABRT' in str(error), error\n"
        "  held = 'import signal; output = [signal.getsignal(14) == 0, len(signal.pthread_sigmask(0, ()))]'\n"
        "  print(box.execute(held).outputs['output'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert ended.stdout.strip() == "[True, 0]", ended.stderr


@pytest.mark.parametrize(
    "environment",
    machines(
        "Landlock 2, no namespaces",
        of=[each for each in ENVIRONMENTS if not each.is_nobody and "landlock" not in each.missing],
    ),
)
def test_no_file_is_truncated_that_may_not_be_written(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "granted" / "write").mkdir(parents=True)
    files = [tmp_path / "secret", tmp_path / "granted" / "read"]
    for each in [*files, tmp_path / "granted" / "write" / "file"]:
        each.write_text("precious")
    found = json.loads(run_in(environment, "truncate", str(files[0]), str(tmp_path / "granted")))
    assert [each.read_text() for each in files] == ["precious"] * 2, found
    assert found[-1] == "worked"


def test_a_zygote_that_has_no_room_for_a_process_goes_on() -> None:
    with Sandbox(required_layers=()) as box:
        box.execute("output = 1")
        pid = box._executor._host._zygote.pid  # type: ignore[attr-defined]
        former = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        last = max(8, *map(int, os.listdir(f"/proc/{pid}/fd")))
        failures = []
        for most in range(8, last + 2):  # for none of what it gets, for some of it, for all but the pidfd, for all
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, former[1]))
            for _ in range(3):
                try:
                    box.execute("output = 1")
                except SandboxBroken as error:
                    failures.append(str(error))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, former)
        assert any("could not make it" in each for each in failures), failures
        before = len(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(9):  # those that were asked for before, and could not be made
            with contextlib.suppress(SandboxBroken):
                box.execute("output = 1")
        for _ in range(5):
            assert box.execute("output = 1").outputs["output"] == 1
        assert len(os.listdir(f"/proc/{pid}/fd")) <= before + 12  # those of processes that have not ended yet
        assert box.health().is_ready
