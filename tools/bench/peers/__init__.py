"""One module for each peer, all behind the interface of :mod:`.base`. None imports its library before it starts."""

from .arrow import ArrowFiles
from .base import LoanedPeer, Peer, TimedPeer
from .cpp import CppLoaned
from .floor import Passes, Semaphore
from .iceoryx import Iceoryx, IceoryxLoaned
from .ours import Ours, OursLoaned, OursLoanedSpinning, OursSpinning
from .pipe import Pipe
from .polled_files import PolledFiles
from .ray_actor import RayActor
from .shared import FixedBlocks, NewBlocks
from .torch_mp import TorchQueues
from .zmq_ipc import ZmqIpc

__all__ = ["PEERS", "LoanedPeer", "Peer", "TimedPeer"]

PEERS: dict[str, type[Peer]] = {
    each.key: each
    for each in (
        Semaphore,
        Passes,
        Ours,
        OursLoaned,
        OursSpinning,
        OursLoanedSpinning,
        CppLoaned,
        Iceoryx,
        IceoryxLoaned,
        ZmqIpc,
        FixedBlocks,
        NewBlocks,
        Pipe,
        ArrowFiles,
        TorchQueues,
        RayActor,
        PolledFiles,
    )
}
OURS = {key for key in PEERS if key.startswith("ours")}
