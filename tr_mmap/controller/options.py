"""The options of a session, checked when they are given. Starts nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ..base.identifiers import check_session_id
from ..channel.kinds import CHANNEL_NAMES
from ..errors import BadMessage
from ..transfer.kinds import check_options
from ..transfer.options import TransferOptions
from ..wire.waits import DEFAULT_TIMEOUT_MS, MAX_SPIN_US

__all__ = ["SessionOptions"]


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """The options of a session, all valid. Made by :meth:`checked`.

    Attributes:
        script_path: of the worker's script, or ``"default"``.
        session_id: the session's name.
        framework: ``"numpy"`` or ``"torch"``.
        channel: ``"mapped"``, ``"files"`` or ``"legacy"``.
        auth: whether each control message is signed.
        spin_us: how many microseconds both sides poll for a message, at most, before they sleep.
        transfer: how both sides keep their tensors.
    """

    script_path: str
    session_id: str
    framework: str = "numpy"
    channel: str = "mapped"
    auth: bool = False
    spin_us: float = 0.0
    transfer: TransferOptions = field(default_factory=TransferOptions)

    @classmethod
    def checked(
        cls,
        script_path: str | os.PathLike[str],
        session_id: str,
        *,
        framework: str,
        channel: str,
        budget_nbytes: int | None,
        at_budget: str,
        auth: bool,
        checksum: bool,
        spin_us: float,
    ) -> SessionOptions:
        """The options, in the form that ``PythonSession`` takes.

        Raises:
            BadMessage: one of them is not valid.
        """
        check_session_id(session_id)
        if framework not in ("numpy", "torch"):
            raise BadMessage(f"framework is {framework!r}; it is 'numpy' or 'torch'", detail=framework)
        if channel not in CHANNEL_NAMES:
            raise BadMessage(f"channel is {channel!r}; it is one of {', '.join(CHANNEL_NAMES)}", detail=channel)
        if at_budget not in ("fail", "block"):
            raise BadMessage(f"at_budget is {at_budget!r}; it is 'fail' or 'block'", detail=at_budget)
        if not 0 <= spin_us <= MAX_SPIN_US:
            raise BadMessage(f"spin_us is {spin_us!r}; it is 0 to {MAX_SPIN_US:.0f}", detail=repr(spin_us))
        check_options(channel, auth=auth, checksum=checksum)
        block_ms = DEFAULT_TIMEOUT_MS if at_budget == "block" else 0.0
        transfer = TransferOptions(budget_nbytes=budget_nbytes, block_ms=block_ms, checksum=checksum)
        return cls(os.fspath(script_path), session_id, framework, channel, auth, spin_us, transfer)
