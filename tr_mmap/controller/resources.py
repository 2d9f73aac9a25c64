"""What a session owns: its directory, its tensors, the worker that runs in it. Knows nothing of requests."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from ..base import system
from ..base.fork_safety import ForkAware, this_process
from ..base.identifiers import is_result_name, spill_sender
from ..channel.authenticated import RejectionCounter, protect
from ..channel.interface import Role
from ..channel.kinds import channel_kind, usable_channel
from ..errors import BadMessage, HostilePath, ScriptNotFound, SessionNotStarted, TRException
from ..processes.guard import Guard
from ..processes.identity import Identity
from ..processes.interpreter import find_python
from ..processes.life_lock import LifeLock, is_held
from ..processes.spawn import WorkerProcess
from ..processes.worker_log import new_log_path, remove_log
from ..protocol.legacy import LEGACY
from ..protocol.messages import now_ms
from ..sessions import manifest as manifests
from ..sessions.manifest import Manifest
from ..sessions.pools import process_pool
from ..sessions.projects import advice_on_place
from ..sessions.secret import new_secret
from ..sessions.workspace import Workspace
from ..transfer.kinds import controller_transfer
from ..transfer.shared import PoolAccess
from ..wire.messages import BELL_FILE
from ..wire.names import CONTROLLER_LOCK_FILE
from .fast_path import Traffic, controller_fast_path
from .launch import launch, recipe_of
from .options import SessionOptions
from .worker_handle import WorkerHandle

if TYPE_CHECKING:
    from ..processes.spare import Recipe, Spare
    from ..processes.spares import Spares

__all__ = ["SessionResources"]

# How many other sessions a start looks at, so that its cost does not grow with how many there are: 50 take 2 ms.
_MAX_SWEPT: Final = 50


class SessionResources(ForkAware):
    """A session's directory and all that is in it. Released when the session ends, in whatever way.

    Args:
        options: of the session; its name is claimed for this process.
        workspace: where the session is; None for the workspace of the options.
        spares: of the session's pool; None if it has its own, or none.

    Attributes:
        directory: of the session.
        transfer: this side's tensors.
        worker: the running worker; None while there is none.
        bell: wakes whoever sleeps on it for the session's answers; None if the channel has none.
        stop_thread: ends the thread that does so; None if there is none.
        spares: of the session, or of its pool; None if there are to be none.
        rejections: counts the messages that were ignored because the worker had not signed them.

    Raises:
        SessionInUse: another process has the name.
        HostilePath: the workspace is not a directory that this user can trust and use.
    """

    def __init__(
        self, options: SessionOptions, workspace: Workspace | None = None, spares: Spares | None = None
    ) -> None:
        self._owner = this_process.mark
        self.traffic: Traffic | None = None  # of the dispatcher
        self.worker: WorkerHandle | None = None
        super().__init__()  # after ``worker`` is set, which the fork hook uses
        self.options = options
        self.session_id = options.session_id
        self.rejections = RejectionCounter()
        self.workspace = workspace or Workspace.at(options.workspace_root)
        self._channel = usable_channel(options.channel)
        self._owner_pid = os.getpid()
        self._lock = LifeLock()  # held while the session is this object's
        self._spare = system.SpareDescriptors()  # taken while it starts, so that a start that fails can clean up
        self._was_started = False
        self._has_transfer = False
        self.bell: system.OwnFile | None = None
        self.stop_thread: Callable[[], None] | None = None
        self._log_path = ""  # of the worker, if the log is outside the directory
        self.last_pid = 0  # of the worker that was started last
        self.spares = spares
        self._has_own_spares = spares is None and options.spare_workers > 0
        if self._has_own_spares:
            from ..processes.spares import Spares  # most sessions have none

            self.spares = Spares(options.spare_workers)
        self._sweep()
        self._guard = self._new_guard()
        self._mark = f"{os.getpid()}-{os.urandom(8).hex()}" if self._guard is None else self._guard.mark
        try:
            if self._guard is not None:
                self._guard.watch()  # before the directory is there: this process may be killed at any moment
            self.directory = self._claim()
        except BaseException:
            self._end_guard()
            raise
        try:
            self.transfer = controller_transfer(
                self._channel,
                self.directory,
                options.transfer,
                options.views,
                self._process_pool(),
                options.device,
            )
        except BaseException:
            self._give_up()
            self._end_guard()
            raise
        self._has_transfer = True

    def forked_in_child(self) -> None:
        """End every wait for the worker: a handler may have forked during one, which goes on in the child."""
        worker = self.worker
        if worker is not None:
            worker.watch.deaths.append(worker.process.identity)

    def _new_guard(self) -> Guard | None:
        """The guard of a worker that perhaps does not watch this process; None if there is no need, or no Python."""
        if self._channel != LEGACY:
            return None
        try:
            interpreter = find_python(None, {})
        except ScriptNotFound:  # this program embeds Python
            try:
                interpreter = find_python(self.options.python)
            except ScriptNotFound:
                return None  # the start of the worker will say so
        directory = self.workspace.session_dir(self.session_id)
        return Guard(interpreter, directory, self.workspace.levels_to_remove())

    def _process_pool(self) -> PoolAccess | None:
        """The pool of this process; None for a session that must have its own."""
        options = self.options
        is_apart = options.auth or options.transfer.checksum or options.transfer.budget_nbytes is not None
        return None if is_apart or self._channel == LEGACY else process_pool(self.workspace)

    def _end_guard(self) -> None:
        if self._guard is not None:
            self._guard.end()

    def advice_on_place(self) -> str:
        """What an error says of a worker that does not answer, if it may look for its session elsewhere; else ""."""
        options = self.options
        return advice_on_place(options.channel, options.script_path, self.workspace, options.workspace_root)

    def _claim(self) -> str:
        path = self.workspace.claim(self.session_id, self._manifest([]), self._lock)
        self._claimed: os.stat_result | None = None
        try:
            self._claimed = system.status(path)
        except OSError:
            pass  # then the lock alone tells whether the directory is ours
        except BaseException:  # a signal handler's
            if this_process.mark is self._owner:  # else it has forked, and raised in the child
                self.workspace.release(self.session_id)
                self._lock.drop()
            raise
        return path

    def lost_directory(self) -> SessionNotStarted:
        """The error for a session whose directory somebody has removed."""
        return SessionNotStarted(
            f"the directory of session {self.session_id!r}, {self.directory}, was removed while the session "
            "lived; close() this session, and start another"
        )

    def has_directory(self) -> bool:
        """Whether the directory is still this object's; True also if its lock file was removed or replaced by hand."""
        lock = os.path.join(self.directory, CONTROLLER_LOCK_FILE)
        if self._lock.is_at(lock):
            return True
        try:
            if self._claimed is None or not os.path.samestat(self._claimed, system.status(self.directory)):
                return False
            # A file system may give the inode of a removed directory to another session's. That one holds its own lock,
            # and its manifest names its controller.
            if is_held(lock):
                return False
            manifest = manifests.read(self.directory)
        except FileNotFoundError:
            return False
        except (BadMessage, HostilePath):
            manifest = None
        return manifest is None or manifest.controller == Identity.current()

    def _give_up(self) -> None:
        """Remove the directory, if it is this object's. May be called again. Does nothing in a forked child."""
        if this_process.mark is not self._owner:
            return
        self._spare.free()
        if self._lock.is_held:
            # Else somebody has removed it by hand, and the name is another session's by now.
            if self.has_directory() or not system.exists(self.directory):
                self.workspace.release(self.session_id)
            self._lock.drop()

    def _manifest(self, doorbells: list[str], mark: str = "") -> Manifest:
        return Manifest(
            session_id=self.session_id,
            controller=Identity.current(),
            channel=self._channel,
            doorbells=doorbells,
            worker_mark=mark,
            transfer=self.options.transfer,
            spin_us=self.options.spin_us,
            recycle_memory=self.options.recycle_memory,
            framework="tr_mmap",
            pool=os.path.basename(self.transfer.pool_directory) if self._has_transfer else "",
            log=self._log_path,
            created_ms=now_ms(),
        )

    def _sweep(self) -> None:
        """Remove what dead sessions left. This session can start even if that fails."""
        try:
            self.workspace.sweep(at_most=_MAX_SWEPT)
        except (TRException, OSError):
            pass

    def start(self, *, quiet: bool, on_end: Callable[[], None]) -> None:
        """Start a worker over new control files; does not wait for it.

        If the first start fails, nothing of the session is left, and its name is free; the next start claims it again.

        Args:
            quiet: False also copies the worker's output to this process's stderr.
            on_end: called from another thread when the worker has ended.
        """
        try:
            if not self._lock.is_held:
                self._claim()
            elif not self.has_directory():
                raise self.lost_directory()
            self._spare.take()
            self._start(quiet=quiet, on_end=on_end)
            self._was_started = True
        except BaseException:
            if not self._was_started:
                self._close_bell()
                self._give_up()
            raise
        finally:
            self._spare.free()

    def _close_bell(self) -> None:
        bell, self.bell = self.bell, None
        if bell is not None:
            bell.close()

    def _start(self, *, quiet: bool, on_end: Callable[[], None]) -> None:
        self.workspace.find(self.session_id)
        self._remove_leftovers()
        recipe, spare = self._take_spare()
        try:
            self._start_with(recipe, spare, quiet=quiet, on_end=on_end)
        except BaseException:
            if spare is not None:
                spare.end()
            raise

    def _take_spare(self) -> tuple[Recipe | None, Spare | None]:
        """What spares have to be made of, and one of them, if there is one."""
        if self.spares is None:
            return None, None
        options = self.options
        recipe = recipe_of(
            options.script_path,
            self.workspace.root,
            options.framework,
            options.cwd,
            env=options.env,
            python=options.python,
        )
        return recipe, self.spares.take(recipe)

    def _start_with(
        self, recipe: Recipe | None, spare: Spare | None, *, quiet: bool, on_end: Callable[[], None]
    ) -> None:
        options = self.options
        mark = f"{self._mark}-{os.urandom(4).hex()}" if spare is None else spare.mark
        if self._guard is not None:
            self._guard.watch()  # again, if somebody has ended it
        kind = channel_kind(self._channel)
        remove_log(self._log_path)
        self._log_path = new_log_path(self.directory)
        manifest = self._manifest(kind.new_doorbells(), mark)
        # Before the doorbells exist: then a sweep knows their names, at whatever moment this process is killed.
        manifests.write(self.directory, manifest)
        secret = new_secret() if options.auth else None
        if self.bell is None and kind.has_bell:
            self.bell = system.make_fifo(os.path.join(self.directory, BELL_FILE))
        bare = kind.create(self.directory, manifest.doorbells)
        bare.set_spin(options.spin_us)
        channel = protect(bare, Role.CONTROLLER, secret, self.rejections)
        channel.keep_order()
        process: WorkerProcess | None = None
        try:
            process = launch(
                options.script_path,
                self.session_id,
                workspace_root=self.workspace.root,
                session_dir=self.directory,
                mark=mark,
                quiet=quiet,
                secret=secret,
                log_path=self._log_path,
                args=options.args,
                env=options.env,
                cwd=options.cwd,
                python=options.python,
                spare=spare,
            )
            manifests.write(self.directory, msgspec.structs.replace(manifest, worker=process.identity))
            worker = WorkerHandle(channel, process, on_end)
            self.transfer.worker_started(worker.is_over)
            worker.sent_before = 0 if self.traffic is None else self.traffic.counters.sent
            if (
                worker.watch.has_thread and self.traffic is not None
            ):  # the fast path asks nobody else whether the worker has died
                deaths = worker.watch.deaths
                worker.fast_path = controller_fast_path(channel, self.transfer, deaths, self.traffic)
            self.worker, self.last_pid = worker, process.pid
            if self.spares is not None and recipe is not None:
                self.spares.refill(recipe, worker.has_settled)
        except BaseException:
            if this_process.mark is not self._owner:  # a signal handler has forked meanwhile
                raise
            self._spare.free()
            try:
                if process is not None:
                    process.terminate_tree(0)
            finally:
                channel.close()
            raise

    def forget_worker(self) -> None:
        """Release the handle of a worker that has ended, and remove the files that the worker left."""
        worker, self.worker = self.worker, None
        try:
            if worker is not None:
                self._end(worker)
            if self.has_directory():
                self._remove_leftovers()
        except OSError:
            pass  # the next start tries again, and does not start if it cannot

    def _end(self, worker: WorkerHandle) -> None:
        """End the worker. Remove the sessions of processes that were killed: a handler may have started a session."""
        try:
            worker.end()
        finally:
            if (killed := worker.process.killed) and this_process.mark is self._owner:
                self.workspace.release_of(killed)

    def _remove_leftovers(self) -> None:
        """Remove a dead worker's results and spills, because the next worker begins with the same names.

        Views of the results keep their memory.
        """
        for name in system.list_dir(self.directory):
            if is_result_name(name) or spill_sender(name):
                system.unlink(os.path.join(self.directory, name), owner=self._owner)

    def release(self) -> None:
        """End the worker if it lives, and remove the directory. May be called again.

        Raises:
            OSError: a system call failed. The worker is ended all the same; call this again for the rest.
        """
        if self.is_foreign or os.getpid() != self._owner_pid:  # also after a fork that Python did not make
            return
        try:
            if self.stop_thread is not None:
                self.stop_thread()
            if self.worker is not None:
                self._end(self.worker)
            self.worker = None
        finally:
            self._close_bell()
            if this_process.mark is self._owner:  # else a signal handler has forked meanwhile
                self.transfer.close()
                self._give_up()
                remove_log(self._log_path)
                if self.spares is not None and self._has_own_spares:
                    self.spares.close()
        self._end_guard()  # last, and only if all went well
