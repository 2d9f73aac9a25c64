"""A module of torch whose weights are tensors of the other side: nothing is copied, and each version is whole."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from strategies import bits
from support import FOREVER_MS, Mapping

from tr_mmap import PythonSession

COUNT = 200  # inputs and outputs: the weight lies in a segment of its own


def send(session: PythonSession, module: torch.nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        session.send_tensor(tensor, name)


def place_of_module(session: PythonSession) -> Mapping:
    return Mapping(**json.loads(session.fetch_response("where_is_module")))


def test_a_module_computes_with_the_weights_where_their_sender_has_put_them(torch_session: PythonSession) -> None:
    module, x = torch.nn.Linear(COUNT, COUNT), torch.randn(3, COUNT)
    send(torch_session, module)
    torch_session.fetch_response("load_module weight bias")
    place = place_of_module(torch_session)
    assert place.inode == (Path(torch_session.session_dir()) / "weight.tsr").stat().st_ino
    assert place.permissions == "rw-p"  # what the module stores into its weights stays in its process
    assert torch.allclose(torch_session.calculate("apply_module", x), module(x), atol=1e-5)


def test_what_a_module_learns_there_changes_nothing_here_and_nothing_under_the_tags(
    torch_session: PythonSession,
) -> None:
    module, x = torch.nn.Linear(COUNT, COUNT), torch.ones(1, COUNT)
    weight = bits(module.weight)
    send(torch_session, module)
    torch_session.fetch_response("load_module weight bias")
    torch_session.calculate("train_module", x, timeout_ms=FOREVER_MS)  # torch prepares much for its first gradients
    assert torch.allclose(torch_session.calculate("apply_module", x), module(x) - COUNT - 1, atol=1e-3)
    assert bits(module.weight) == bits(torch_session.fetch_tensor("echo weight")) == weight
    torch_session.fetch_response("load_module weight bias")  # the same tags again
    assert torch.allclose(torch_session.calculate("apply_module", x), module(x), atol=1e-5)


def test_a_module_keeps_its_weights_whole_until_it_loads_the_next_and_their_memory_goes_round(
    torch_session: PythonSession,
) -> None:
    module, x = torch.nn.Linear(COUNT, COUNT), torch.ones(1, COUNT)
    places = []
    with torch.no_grad():
        for version in range(12):
            for parameter in module.parameters():
                parameter.fill_(version)
            send(torch_session, module)
            earlier = torch_session.submit("apply_module", x) if version else None
            torch_session.submit("load_module weight bias")
            later = torch_session.submit("apply_module", x)
            if earlier is not None:
                assert set(earlier.result().flatten().tolist()) == {(version - 1) * (COUNT + 1)}
            assert set(later.result().flatten().tolist()) == {version * (COUNT + 1)}
            places.append(place_of_module(torch_session).inode)
    assert places[-1] != places[-2]
    assert len(set(places)) <= 3
