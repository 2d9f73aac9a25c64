"""Kills at random moments where one side speaks only the legacy dialect: nothing is left, and no answer is wrong."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from projects import Project, bare_environment, begin, running, shell_controller
from support import WORKERS, json_line, wait_until

LEGACY_WORK = WORKERS / "legacy_work.py"
MOST_S = 0.5  # an interpreter starts in this time, and serves some requests
PLACES = pytest.mark.parametrize("is_in_project", [True, False], ids=["project", "workspace"])


def place_of(tmp_path: Path, is_in_project: bool) -> tuple[Project, dict[str, str]]:
    """A project, and an environment in which its ``workspace/`` is the project's, or the one that the user chose."""
    project = Project(tmp_path / "project")
    environ = bare_environment()
    return project, environ if is_in_project else {**environ, "TR_WORKSPACE": str(project.workspace)}


def rounds(is_full: bool) -> int:
    return 100 if is_full else 3


@pytest.mark.long
@pytest.mark.timeout(900)
@PLACES
@pytest.mark.parametrize("is_old", [True, False], ids=["old worker", "our worker"])
def test_our_controller_killed_at_random_moments_leaves_nothing(
    tmp_path: Path, is_full: bool, is_in_project: bool, is_old: bool, figures: Callable[[str], None]
) -> None:
    project, environ = place_of(tmp_path, is_in_project)
    script = project.old_worker() if is_old else project.our_worker()
    moments: list[float] = []
    slowest_s = 0.0
    for _ in range(rounds(is_full)):
        with running([sys.executable, LEGACY_WORK, script, "one"], environ) as controller:
            if random.random() < 0.5:  # else in the middle of the start
                json_line(controller, "the controller")
            time.sleep(random.uniform(0, MOST_S))
            assert controller.poll() is None
            controller.kill()
            began_s = time.monotonic()
            wait_until(lambda: not project.processes())
            assert project.sessions() == []
            slowest_s = max(slowest_s, time.monotonic() - began_s)
            moments.append(began_s)
    figures(f"{len(moments)} kills, the slowest left nothing after {slowest_s:.2f} s")


@pytest.mark.long
@pytest.mark.timeout(900)
@PLACES
@pytest.mark.parametrize("is_old", [True, False], ids=["old worker", "our worker"])
def test_workers_killed_at_random_moments_under_our_controller_are_started_again(
    tmp_path: Path, is_full: bool, is_in_project: bool, is_old: bool
) -> None:
    project, environ = place_of(tmp_path, is_in_project)
    script = project.old_worker() if is_old else project.our_worker()
    with running([sys.executable, LEGACY_WORK, script, "one"], environ) as controller:
        worker = json_line(controller, "the controller")["worker"]
        for _ in range(rounds(is_full)):
            time.sleep(random.uniform(0, MOST_S))
            os.kill(worker, signal.SIGKILL)
            while "worker" not in (line := json_line(controller, "the controller")):
                assert line == {"working": True}
            assert line["worker"] != worker
            worker = line["worker"]
        controller.kill()
        project.wait_until_nothing_is_left()


@pytest.mark.long
@pytest.mark.timeout(900)
@PLACES
def test_an_old_controller_killed_at_random_moments_leaves_nothing(
    tmp_path: Path, is_full: bool, is_in_project: bool
) -> None:
    project, environ = place_of(tmp_path, is_in_project)
    command = shell_controller(project, project.our_worker(), "one")
    for _ in range(rounds(is_full)):
        with running(command, environ, cwd=tmp_path) as controller:
            json_line(controller, "the controller")
            if random.random() < 0.5:  # else in the middle of the worker's start
                begin(controller, work=True)
                assert json_line(controller, "the controller") == {"working": True}
            time.sleep(random.uniform(0, MOST_S))
            assert controller.poll() is None
            controller.kill()
            project.wait_until_nothing_is_left()


@pytest.mark.long
@pytest.mark.timeout(900)
@PLACES
def test_a_worker_killed_at_random_moments_under_an_old_controller_leaves_no_process(
    tmp_path: Path, is_full: bool, is_in_project: bool
) -> None:
    """The directory is the controller's then: nobody else is left who could remove it, and the next one takes it."""
    project, environ = place_of(tmp_path, is_in_project)
    command = shell_controller(project, project.our_worker(), "one")
    for _ in range(rounds(is_full)):
        with running(command, environ, cwd=tmp_path) as controller:
            json_line(controller, "the controller")
            begin(controller, work=True)
            assert json_line(controller, "the controller") == {"working": True}
            (worker,) = [each for each in project.processes() if each.pid != controller.pid]
            time.sleep(random.uniform(0, MOST_S))
            worker.kill()
            controller.kill()
            wait_until(lambda: not project.processes())
        for each in (project.workspace / "python_session" / "tr_session_one").iterdir():
            each.unlink()
    (project.workspace / "python_session" / "tr_session_one").rmdir()
