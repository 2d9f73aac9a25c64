"""What a worker follows that a shell has started in the background: the program that told the shell to do so.

``system("worker &")`` leaves no parent to watch: init adopts the worker, or another process that says so to the kernel.
The worker has the program's process group, in which others may be: scripts, pipelines, more workers, its own children.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from projects import PEERS, Project, bare_environment, begin, do, running, shell_controller
from support import environment, has_ended, json_line, wait_until

SUBREAPER = PEERS / "subreaper.py"
HOLDING_CHILD = """
import subprocess
@server.command("leave_child")
def leave_child():
    # A grandchild whose parent has gone: it is in the program's group, and nothing ties it to the worker.
    middle = "import subprocess; print(subprocess.Popen(['sleep', '1000'], stdout=subprocess.DEVNULL).pid)"
    return subprocess.run([sys.executable, "-c", middle], stdout=subprocess.PIPE, text=True).stdout.strip()

"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path / "project")
    yield made
    made.kill_all()


@contextmanager
def started(command: list[object], **options: Any) -> Iterator[subprocess.Popen[str]]:
    with running(command, bare_environment(), **options) as process:
        json_line(process, "the old controller")
        yield process


def worker_of(old: subprocess.Popen[str]) -> psutil.Process:
    return psutil.Process(int(do(old, cmd="pid", params="", want="text")["params"]))


def controller_of(project: Project) -> psutil.Process:
    """The one process that runs the old controller itself, not through another program."""
    (found,) = [each for each in project.processes() if "shell_controller.py" in each.cmdline()[1]]
    return found


def is_served(old: subprocess.Popen[str]) -> bool:
    return bool(do(old, cmd="hello", params="you", want="text")["params"] == "Hello You")


def by_script(project: Project, after: str = "") -> list[object]:
    """A shell script that runs the controller, and then goes on or ends."""
    words = " ".join(f"'{each}'" for each in shell_controller(project, project.our_worker(), "one"))
    return ["/bin/sh", "-c", f"{words} {after}"]


def test_a_worker_that_a_shell_has_started_ends_with_the_program_and_removes_what_it_left(project: Project) -> None:
    with started(shell_controller(project, project.our_worker(), "one")) as old:
        worker = worker_of(old)
        assert worker.ppid() != old.pid  # the shell between them has gone
        old.kill()
        assert has_ended(worker.pid)
    project.wait_until_nothing_is_left()


def test_what_a_program_wrote_until_the_moment_of_its_death_keeps_nothing_there(project: Project) -> None:
    """The clock of files and those that a program may read are not the same."""
    for _ in range(5):
        with started(shell_controller(project, project.our_worker(), "one")) as old:
            worker = worker_of(old)
            begin(old, scribble=True)
            assert json_line(old, "the old controller") == {"scribbling": True}
            old.kill()
            assert has_ended(worker.pid)
        project.wait_until_nothing_is_left()


def test_a_program_that_reads_what_both_print_does_not_keep_the_worker(project: Project) -> None:
    reader = (
        "import subprocess, sys; program = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)\n"
        "for line in program.stdout: print(line, end='', flush=True)"
    )
    with started([sys.executable, "-c", reader, *shell_controller(project, project.our_worker(), "one")]) as old:
        worker = worker_of(old)
        assert os.getpgid(worker.pid) == old.pid
        controller_of(project).kill()
        assert has_ended(worker.pid)


@pytest.mark.parametrize("is_of_group", [True, False])
def test_whoever_adopts_a_worker_is_not_what_it_follows(project: Project, is_of_group: bool) -> None:
    command = shell_controller(project, project.our_worker(), "one")
    if not is_of_group:
        # The adopting process leaves the group that the program is in.
        leave = "import os, sys; os.setpgid(0, 0); os.execv(sys.executable, sys.argv[1:])"
        command = [sys.executable, "-c", leave, *command]
    with started([sys.executable, SUBREAPER, *command]) as adopting:
        worker = worker_of(adopting)
        assert worker.ppid() == adopting.pid
        controller = controller_of(project)
        assert (os.getpgid(controller.pid) == adopting.pid) is is_of_group
        adopting.kill()
        assert has_ended(adopting.pid)
        wait_until(lambda: worker.ppid() != adopting.pid)
        for _ in range(3):
            assert is_served(adopting)
        controller.kill()
        assert has_ended(worker.pid)


def test_a_shell_that_goes_in_the_middle_of_the_look_is_not_what_tells(tmp_path: Path) -> None:
    """Its place as the parent is another process's a moment later, which is not the program."""
    looking = tmp_path / "looking.py"
    looking.write_text(
        "import os, sys\nfrom tr_mmap.processes import launcher\n"
        "answers, now = [int(sys.argv[1])], os.getppid\n"
        "while launcher._name_of(now()) in launcher._SHELLS: pass\n"  # the shell that started this one
        "os.getppid = lambda: answers.pop() if answers else now()\n"
        "print([each.pid for each in launcher.find_launchers()], flush=True)\n"
    )
    program = (
        "import os, subprocess, sys\n"
        "shell = subprocess.Popen(['/bin/sh', '-c', 'read line; true'], stdin=subprocess.PIPE)\n"
        f"os.system(f'{sys.executable} {looking} {{shell.pid}} &')\n"
        "sys.stdin.read(1)\n"
    )
    with running([sys.executable, "-c", program], environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"[{process.pid}]\n"


def test_a_worker_ends_with_a_program_although_what_has_adopted_it_lives(project: Project) -> None:
    leave = "import os, sys; os.setpgid(0, 0); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", leave, *shell_controller(project, project.our_worker(), "one")]
    with started([sys.executable, SUBREAPER, *command]) as adopting:
        worker = worker_of(adopting)
        controller_of(project).kill()
        assert has_ended(worker.pid)
        assert adopting.stderr is not None
        assert adopting.stderr.readline() == "command ended -9\n"


def test_a_program_that_a_script_has_started_is_followed_and_the_script_is_not(project: Project) -> None:
    with started(by_script(project, "; sleep 1000")) as old:
        worker = worker_of(old)
        controller_of(project).kill()
        assert has_ended(worker.pid)
        for each in psutil.Process(old.pid).children():
            each.kill()


def test_a_worker_goes_on_when_the_script_is_killed_and_the_program_is_not(project: Project) -> None:
    with started(by_script(project, "; true")) as old:
        worker = worker_of(old)
        controller = controller_of(project)
        assert controller.ppid() == old.pid
        old.kill()
        assert has_ended(old.pid)
        for _ in range(3):
            assert is_served(old)
        controller.kill()
        assert has_ended(worker.pid)


@pytest.mark.parametrize("pipeline", ["| cat", "2>&1 | cat | cat", "| cat; sleep 1000"])
def test_the_readers_of_a_pipeline_and_its_script_do_not_keep_the_worker(project: Project, pipeline: str) -> None:
    """They wait for the end of its output, and the worker would wait for theirs."""
    with started(by_script(project, pipeline)) as old:
        worker = worker_of(old)
        controller_of(project).kill()
        assert has_ended(worker.pid)
        for each in psutil.Process(old.pid).children():
            each.kill()


def test_a_worker_outlives_the_readers_of_a_pipeline(project: Project) -> None:
    with started(by_script(project, "| cat")) as old:
        worker = worker_of(old)
        (reader,) = [each for each in psutil.Process(old.pid).children() if each.name() == "cat"]
        reader.kill()
        assert has_ended(reader.pid)
        controller = controller_of(project)
        begin(old, tensor="a", dtype="float32", shape=[1], values=[1])  # whose line nobody reads
        assert has_ended(controller.pid)  # of EPIPE
        assert has_ended(worker.pid)


def test_two_workers_of_one_program_do_not_keep_each_other(project: Project) -> None:
    script = project.our_worker()
    pid = '{"cmd": "pid", "params": ""}'
    both = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from shell_controller import *\n"
        "project, folder, _, script = sys.argv[1:]\n"
        f"pids = [ShellController(project, folder, each, script).ask('{pid}', 'text')['params'] for each in '123']\n"
        "print(json.dumps({'workers': pids}), flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = shell_controller(project, script, "one")
    with running([sys.executable, "-c", both, PEERS, *command[2:]], bare_environment()) as old:
        pids = [int(each) for each in json_line(old, "the old controller")["workers"]]
        assert len(set(pids)) == 3
        old.kill()
        assert all(has_ended(pid) for pid in pids)
    project.wait_until_nothing_is_left()


def test_what_a_worker_has_started_does_not_keep_it(project: Project) -> None:
    script = project.our_worker()
    script.write_text(script.read_text().replace('@server.command("say")', HOLDING_CHILD + '@server.command("say")'))
    with started(shell_controller(project, script, "one")) as old:
        worker = worker_of(old)
        child = psutil.Process(int(do(old, cmd="leave_child", params="", want="text")["params"]))
        try:
            assert os.getpgid(child.pid) == os.getpgid(worker.pid)
            old.kill()
            assert has_ended(worker.pid)
            assert child.is_running()
        finally:
            child.kill()


def test_a_worker_ends_when_an_old_controller_removes_its_directory(project: Project) -> None:
    with started(shell_controller(project, project.our_worker(), "one")) as old:
        worker = worker_of(old)
        (project.workspace / "python_session" / "tr_session_one").rename(project.root / "elsewhere")
        assert has_ended(worker.pid)
        assert old.poll() is None


def test_a_session_that_is_in_use_again_is_not_removed(project: Project) -> None:
    """A controller that is started anew under the name finds the directory there, and writes into it."""
    with started(shell_controller(project, project.our_worker(), "one")) as old:
        worker = worker_of(old)
        directory = project.workspace / "python_session" / "tr_session_one"
        worker.suspend()
        old.kill()
        assert has_ended(old.pid)
        (directory / "status.txt").write_text("ready")  # as a controller does that begins
        (directory / "b.tsr").write_bytes(b"new")
        worker.resume()
        assert has_ended(worker.pid)
