"""A session's directory, the worker that runs in it, and the release of both. Knows nothing of requests."""

from __future__ import annotations

import os

import msgspec

from . import manifest as manifests
from .channel import CHANNELS, Channel
from .launch import launch
from .manifest import Manifest
from .process import Identity, PeerWatch, WorkerProcess
from .protocol import now_ms
from .segments import Receiver, SegmentPool
from .workspace import Workspace

__all__ = ["Place", "Run"]


class Run:
    """One worker's life: what exists from start() until that worker is gone."""

    def __init__(self, channel: Channel, process: WorkerProcess, receiver: Receiver) -> None:
        self.channel = channel
        self.process = process
        self.receiver = receiver
        self.watch = PeerWatch(process.identity, channel.wake)

    def is_over(self) -> bool:
        """Whether the worker has ended."""
        return self.watch.is_dead

    def end(self) -> None:
        """Let go of everything; the process has ended."""
        self.watch.stop()
        self.process.forward_log(False)
        self.receiver.close()
        self.channel.close()


class Place:
    """The session's directory and all that is in it; released when the session goes, however it goes.

    Args:
        session_id: the session's name, claimed for this process.
        channel: ``"mapped"`` or ``"files"``.
        budget_nbytes: of the pool of segments.

    Raises:
        SessionInUse: somebody else has the name.
    """

    def __init__(self, session_id: str, channel: str, budget_nbytes: int | None) -> None:
        self.session_id = session_id
        self.workspace = Workspace.locate()
        self._channel_name = channel
        self._owner_pid = os.getpid()
        self.directory = self.workspace.claim(session_id, self._manifest([]))
        self.pool = SegmentPool(self.directory, "segment", budget_nbytes=budget_nbytes)
        self.run: Run | None = None

    def _manifest(self, doorbells: list[str]) -> Manifest:
        return Manifest(
            session_id=self.session_id,
            controller=Identity.current(),
            channel=self._channel_name,
            doorbells=doorbells,
            framework="tr_mmap",
            created_ms=now_ms(),
        )

    def start(self, script_path: str, *, quiet: bool) -> None:
        """Start a worker over new control files; does not wait for it."""
        channel = CHANNELS[self._channel_name].create(self.directory)
        process: WorkerProcess | None = None
        try:
            manifest = self._manifest(channel.doorbells)
            manifests.write(self.directory, manifest)
            process = launch(
                script_path,
                self.session_id,
                workspace_root=self.workspace.root,
                session_dir=self.directory,
                quiet=quiet,
            )
            manifests.write(self.directory, msgspec.structs.replace(manifest, worker=process.identity))
            self.run = Run(channel, process, Receiver(self.directory))
        except BaseException:
            if process is not None:
                process.terminate_tree(0)
            channel.close()
            raise

    def release(self) -> None:
        """End the worker if it lives, remove the directory. Never raises for what is gone already."""
        if os.getpid() != self._owner_pid:
            return  # a fork's child: all of this is its parent's
        run, self.run = self.run, None
        try:
            if run is not None:
                try:
                    if run.process.is_alive():
                        run.process.terminate_tree()
                finally:
                    run.end()
        finally:
            self.pool.close()
            self.workspace.release(self.session_id)
