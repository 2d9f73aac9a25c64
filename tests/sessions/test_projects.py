"""A project of the original framework works as it lies there, in either place, and no environment variable helps.

Its controller has the place of its sessions compiled in; its worker counts it from the script.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from projects import FOLDERS, Project, bare_environment, do, running, shell_controller
from support import json_line, script, wait_until

from tr_mmap import HostilePath, PythonSession, ResponseTimeout, sweep

A = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TR_WORKSPACE")


def refusal(command: list[object], cwd: Path, **more: str) -> str:
    """What a worker of ours says that cannot serve."""
    with running(command, {**bare_environment(), **more}, cwd=cwd) as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    return said


# -- an old controller, our worker -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_our_worker_serves_an_old_controller_in_its_project(tmp_path: Path, folder: str) -> None:
    project = Project(tmp_path / "project", folder=None)
    worker = project.our_worker()
    with running(shell_controller(project, worker, "one", folder), bare_environment(), cwd=tmp_path) as old:
        json_line(old, "the old controller")
        for number in range(20):
            values = [float(number), 2.0]
            do(old, tensor="a", dtype="float32", shape=[2], values=values)
            (back,) = do(old, cmd="echo", params="a", want="tensors")["tensors"]
            assert back["values"] == values
            assert do(old, cmd="hello", params="old friend", want="text")["params"] == "Hello Old Friend"
        assert do(old, exit=True) == {}
    project.wait_until_nothing_is_left()


@pytest.mark.parametrize("where", ["above the folder", "beside the script", "in the current directory"])
def test_our_worker_looks_in_every_place_where_an_old_controllers_session_may_be(tmp_path: Path, where: str) -> None:
    project = Project(tmp_path / "project", folder=None)
    module = {"above the folder": tmp_path / "project" / "a" / "b" / "c" / "d"}.get(where, tmp_path / "project")
    if where == "in the current directory":
        module = tmp_path / "elsewhere" / "a" / "b"
    module.mkdir(parents=True, exist_ok=True)
    worker = project.our_worker().rename(module / "worker.py")
    cwd = project.root if where == "in the current directory" else tmp_path
    with running(shell_controller(project, worker, "one"), bare_environment(), cwd=cwd) as old:
        json_line(old, "the old controller")
        assert do(old, cmd="hello", params="you", want="text")["params"] == "Hello You"
        do(old, exit=True)


@pytest.mark.parametrize("is_of_link", [True, False])
def test_a_script_that_is_a_symlink_finds_the_project_of_the_link_and_of_its_target(
    tmp_path: Path, is_of_link: bool
) -> None:
    linking, linked = Project(tmp_path / "linking", folder=None), Project(tmp_path / "linked", folder=None)
    link = linking.module / "worker.py"
    link.symlink_to(linked.our_worker())
    project = linking if is_of_link else linked
    with running(shell_controller(project, link, "one"), bare_environment(), cwd=tmp_path) as old:
        json_line(old, "the old controller")
        assert do(old, cmd="hello", params="you", want="text")["params"] == "Hello You"
        do(old, exit=True)


def test_our_own_workspace_comes_first_and_a_directory_of_that_name_last(project: Project, workspace: Path) -> None:
    """A session's name may be that of any directory in which the program happens to run."""
    (project.root / "docs").mkdir()
    with running(shell_controller(project, project.our_worker(), "docs"), bare_environment(), cwd=project.root) as old:
        json_line(old, "the old controller")
        assert do(old, cmd="hello", params="you", want="text")["params"] == "Hello You"
        do(old, exit=True)
    assert os.listdir(project.root / "docs") == []
    old_place = project.workspace / "python_session" / "tr_session_ours"
    old_place.mkdir()
    with PythonSession(project.our_worker(), "ours", quiet_mode=True) as session:
        assert session.session_dir().startswith(str(workspace))
        assert session.fetch_response("hello you") == "Hello You"
    assert os.listdir(old_place) == []


def test_a_dead_session_of_ours_does_not_hide_a_living_one_of_its_name(project: Project, workspace: Path) -> None:
    environ = {**bare_environment(), "TR_WORKSPACE": str(workspace)}
    both_killed = (
        "import os; from tr_mmap import PythonSession\n"
        "session = PythonSession(session_id='one', quiet_mode=True)\n"
        "session.start(); session.wait_until_ready(60000)\n"
        "os.kill(session.pid, 9); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", both_killed], env=environ, check=False, timeout=60)
    assert (workspace / "python_session" / "tr_session_one").is_dir()
    with running(shell_controller(project, project.our_worker(), "one"), environ, cwd=project.root) as old:
        json_line(old, "the old controller")
        assert do(old, cmd="hello", params="you", want="text")["params"] == "Hello You"
        do(old, exit=True)
    assert sweep().removed == ["one"]


def test_a_worker_that_finds_no_session_names_every_place_where_it_has_looked(project: Project, tmp_path: Path) -> None:
    cwd = tmp_path / "current"
    cwd.mkdir()
    said = refusal([sys.executable, project.our_worker(), "none"], cwd)
    (line,) = [each for each in said.splitlines() if "there is no session 'none'" in each]
    folders = "{python_session,pytorch_session}"
    for place in (project.root, project.module, project.root / "python", tmp_path, cwd):
        assert f"{place}/workspace/{folders}" in line
    assert f"/tr_mmap-{os.getuid()}/python_session," in line
    assert f"/tr_mmap-{os.getuid()}/pytorch_session" in line


@pytest.mark.parametrize("level", ["tr_session_one", "python_session", "workspace"])
def test_a_session_in_a_place_that_everybody_may_write_is_refused(project: Project, tmp_path: Path, level: str) -> None:
    directory = project.workspace / "python_session" / "tr_session_one"
    directory.mkdir()
    (open_to_all,) = [each for each in (directory, *directory.parents) if each.name == level]
    open_to_all.chmod(0o777)
    said = refusal([sys.executable, project.our_worker(), "one"], tmp_path)
    assert "HostilePath" in said
    assert f"{open_to_all} may be written by everybody" in said
    assert os.listdir(directory) == []


def test_a_group_may_write_in_a_project(tmp_path: Path) -> None:
    """What a user's umask of 002 makes of it."""
    project = Project(tmp_path / "project")
    for each in (project.workspace, project.workspace / "python_session"):
        each.chmod(0o775)
    with running(shell_controller(project, project.our_worker(), "one"), bare_environment(), cwd=tmp_path) as old:
        json_line(old, "the old controller")
        (project.workspace / "python_session" / "tr_session_one").chmod(0o775)
        assert do(old, cmd="hello", params="you", want="text")["params"] == "Hello You"
        do(old, exit=True)


# -- our controller, an old worker -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("mode", [0o755, 0o775], ids=["0755", "0775"])
def test_our_session_is_in_the_project_of_an_old_workers_script(
    no_variable: None, tmp_path: Path, folder: str, mode: int
) -> None:
    project = Project(tmp_path / "project", folder)
    for each in (project.workspace, project.workspace / folder):
        each.chmod(mode)
    with PythonSession(project.old_worker(folder), "one", quiet_mode=True, channel="legacy") as session:
        assert session.session_dir() == str(project.workspace / folder / "tr_session_one")
        for number in range(20):
            assert session.calculate("echo", A + number).tolist() == (A + number).tolist()
            assert session.fetch_response(f"say {number}") == str(number)
    project.wait_until_nothing_is_left()
    assert (project.workspace / folder).is_dir()  # which says that this is such a project


def test_a_workspace_two_levels_above_the_script_will_do_without_a_folder(no_variable: None, tmp_path: Path) -> None:
    """A project that was never run. The folder goes with its last session."""
    project = Project(tmp_path / "project", folder=None)
    project.workspace.mkdir()
    with PythonSession(project.old_worker(), quiet_mode=True, channel="legacy") as session:
        assert session.fetch_response("say hi") == "hi"
    project.wait_until_nothing_is_left()
    assert os.listdir(project.workspace) == []


def test_a_worker_of_ours_serves_our_legacy_session_in_a_project(no_variable: None, tmp_path: Path) -> None:
    for folder in FOLDERS:
        project = Project(tmp_path / folder, folder)
        project.workspace.chmod(0o775)
        with PythonSession(project.our_worker(), quiet_mode=True, channel="legacy") as session:
            assert session.session_dir().startswith(str(project.workspace / folder))
            assert session.calculate("echo", A).tolist() == A.tolist()
        project.wait_until_nothing_is_left()


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_the_other_channels_stay_in_our_workspace(no_variable: None, project: Project, channel: str) -> None:
    session = PythonSession(project.our_worker(), channel=channel)
    assert not session.session_dir().startswith(str(project.root))


def test_a_workspace_that_the_user_has_chosen_wins(project: Project, workspace: Path) -> None:
    session = PythonSession(project.old_worker(), channel="legacy")
    assert session.session_dir().startswith(str(workspace))


@pytest.mark.parametrize("level", ["workspace", "python_session"])
def test_a_project_in_which_everybody_may_write_is_refused(no_variable: None, project: Project, level: str) -> None:
    (project.workspace / ("" if level == "workspace" else level)).chmod(0o777)
    with pytest.raises(HostilePath, match="may be written by everybody"):
        PythonSession(project.old_worker(), channel="legacy").start()
    assert project.sessions() == []


def test_the_timeout_of_a_legacy_session_names_both_places(no_variable: None, project: Project, tmp_path: Path) -> None:
    mute = "import signal\nsignal.pause()\n"
    (project.module / "mute.py").write_text(mute)
    with PythonSession(project.module / "mute.py", "one", quiet_mode=True, channel="legacy") as session:
        with pytest.raises(ResponseTimeout) as caught:
            session.fetch_response("hello", 5)
        assert f"its session is in {project.workspace}/python_session, " in str(caught.value)
        assert f"/tr_mmap-{os.getuid()}/python_session" in str(caught.value)
        session.close()


def test_the_timeout_outside_a_project_says_where_an_old_worker_looks(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    mute = script(tmp_path / "a" / "b", "import signal\nsignal.pause()\n")
    with PythonSession(mute, "one", quiet_mode=True, channel="legacy") as session:
        with pytest.raises(ResponseTimeout) as caught:
            session.fetch_response("hello", 5)
        assert f"its session is in {workspace}/python_session; " in str(caught.value)
        assert f"looks in {tmp_path}/workspace/python_session instead: unset TR_WORKSPACE and " in str(caught.value)
        session.close()


def test_an_answered_request_costs_no_look_at_places(no_variable: None, project: Project) -> None:
    """A worker that has taken the request up has found its session."""
    with PythonSession(project.old_worker(), "one", quiet_mode=True, channel="legacy") as session:
        session.send_request("hang")
        worker = session._dispatcher.resources.worker  # type: ignore[union-attr] # it is started
        wait_until(lambda: worker.channel.is_taken_up())  # type: ignore[union-attr]
        with pytest.raises(ResponseTimeout) as caught:
            session.wait_for_response(5)
        assert "its session is in" not in str(caught.value)
        session.close()
