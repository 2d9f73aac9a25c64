"""A session's directory, the worker that runs in it, and the release of both. Knows nothing of requests."""

from __future__ import annotations

import os
import re
import secrets

import msgspec

from . import manifest as manifests
from . import short_cuts, system
from .auth import Tally, new_secret, protect
from .channel import CHANNELS, Channel, Role
from .errors import TRException
from .forks import Forkable
from .launch import launch
from .manifest import Manifest, StoreOptions
from .native import Asker
from .process import Identity, PeerWatch, WorkerProcess
from .protocol import now_ms
from .stores import controller_store
from .workspace import Workspace

__all__ = ["Place", "Run"]

_is_remains = re.compile(r"result_[0-9]+\.tsr|(?:request|response)\.[0-9A-Za-z_]+\.spill").fullmatch


class Run:
    """One worker's life: what exists from start() until that worker is gone."""

    def __init__(self, channel: Channel, process: WorkerProcess) -> None:
        self.channel = channel
        self.process = process
        self.watch = PeerWatch(process.identity, channel.wake)
        self.asker: Asker | None = None

    def is_over(self) -> bool:
        """Whether the worker has ended."""
        return self.watch.is_dead

    def end(self) -> None:
        """End what lives of the worker and its children, and let go of everything."""
        try:
            # Children of a worker that has ended had their time: it could have waited for them.
            self.process.terminate_tree(grace_s=1.0 if self.process.is_alive() else 0.0)
        finally:
            self.watch.stop()
            self.process.forward_log(False)
            self.channel.close()


class Place(Forkable):
    """The session's directory and all that is in it; released when the session goes, however it goes.

    Args:
        session_id: the session's name, claimed for this process.
        channel: ``"mapped"``, ``"files"`` or ``"legacy"``.
        auth: whether every message proves who wrote it.
        options: how both sides keep their tensors.
        spin_us: how long both sides look for a message, at most, before they sleep.

    Raises:
        SessionInUse: somebody else has the name.
    """

    def __init__(
        self,
        session_id: str,
        channel: str,
        *,
        auth: bool = False,
        options: StoreOptions,
        spin_us: float = 0.0,
    ) -> None:
        super().__init__()
        self.session_id = session_id
        self.tally = Tally()
        self._has_auth = auth
        self.options = options
        self._spin_us = spin_us
        self.workspace = Workspace.locate()
        self._channel_name = channel
        self._owner_pid = os.getpid()
        self._sweep()
        self.directory = self.workspace.claim(session_id, self._manifest([]))
        self.store = controller_store(channel, self.directory, options)
        self.run: Run | None = None

    def _manifest(self, doorbells: list[str], mark: str = "") -> Manifest:
        return Manifest(
            session_id=self.session_id,
            controller=Identity.current(),
            channel=self._channel_name,
            doorbells=doorbells,
            worker_mark=mark,
            store=self.options,
            spin_us=self._spin_us,
            framework="tr_mmap",
            created_ms=now_ms(),
        )

    def _sweep(self) -> None:
        """Remove what dead sessions left; whatever cannot be removed is not this session's business."""
        try:
            self.workspace.sweep()
        except (TRException, OSError):
            pass

    def start(self, script_path: str, *, quiet: bool) -> None:
        """Start a worker over new control files; does not wait for it."""
        self.workspace.find(self.session_id)
        self._remove_remains()
        mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        kind = CHANNELS[self._channel_name]
        manifest = self._manifest(kind.new_doorbells(), mark)
        # Before the doorbells exist: whoever sweeps knows their names, at whatever moment we are killed.
        manifests.write(self.directory, manifest)
        secret = new_secret() if self._has_auth else None
        end = kind.create(self.directory, manifest.doorbells)
        end.spin(self._spin_us)
        channel = protect(end, Role.CONTROLLER, secret, self.tally)
        process: WorkerProcess | None = None
        try:
            process = launch(
                script_path,
                self.session_id,
                workspace_root=self.workspace.root,
                session_dir=self.directory,
                mark=mark,
                quiet=quiet,
                secret=secret,
            )
            manifests.write(self.directory, msgspec.structs.replace(manifest, worker=process.identity))
            run = Run(channel, process)
            self.store.begin_run(run.is_over)
            run.asker = short_cuts.asker(channel, self.store, run.watch.ends)
            self.run = run
        except BaseException:
            try:
                if process is not None:
                    process.terminate_tree(0)
            finally:
                channel.close()
            raise

    def end_run(self) -> None:
        """Let go of a worker that has ended, and of what it left."""
        run, self.run = self.run, None
        try:
            if run is not None:
                run.end()
            self._remove_remains()
        except OSError:
            pass  # the next start tries again, and does not start if it cannot

    def _remove_remains(self) -> None:
        """Remove a dead worker's results and long messages; views of the results keep their memory.

        Its successor begins with the same names.
        """
        for name in system.list_dir(self.directory):
            if _is_remains(name):
                system.unlink(os.path.join(self.directory, name))

    def release(self) -> None:
        """End the worker if it lives, remove the directory. Never raises for what is gone already.

        Raises:
            OSError: a system call failed. The worker is ended all the same; for the rest this may be called again.
        """
        if self.is_foreign or os.getpid() != self._owner_pid:  # also after a fork that Python does not know of
            return
        try:
            if self.run is not None:
                self.run.end()
            self.run = None
        finally:
            self.store.close()
            self.workspace.release(self.session_id)
