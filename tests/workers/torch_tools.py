"""A worker for the tests, by subclass: torch tensors, and every name that a subclass may use."""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import asdict

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tr_mmap import TechRenaissanceServer


class TorchTools(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        method = getattr(self, "do_" + command.lower(), None)
        if method is None:
            return False
        return method(parameters) is not False

    def do_hello(self, parameters):
        self.write_response("hello", f"Hello {parameters.title()}")

    def do_echo(self, parameters):
        self.send_tensors(*self.get_tensors(parameters))

    def do_two(self, parameters):
        """Wants two tensors, and says what get_tensors gives it."""
        tensors = self.get_tensors(parameters, 2)
        if tensors is None:
            self.write_response("two", "None")
        else:
            self.write_response("two", " ".join(f"{type(each).__name__}:{each.dtype}" for each in tensors))

    def do_scribble(self, parameters):
        """Write into what was received; the sum that the writer itself sees then."""
        (tensor,) = self.get_tensors(parameters, 1)
        tensor.fill_(9)
        self.write_response("scribble", str(float(tensor.double().sum())))

    def do_sum(self, parameters):
        (tensor,) = self.get_tensors(parameters, 1)
        self.write_response("sum", str(float(tensor.double().sum())))

    def do_where(self, parameters):
        from support import mapping_of_tensor

        (tensor,) = self.get_tensors(parameters, 1)
        self.write_response("where", json.dumps(asdict(mapping_of_tensor(tensor))))

    def do_read_all(self, parameters):
        from support import anonymous_nbytes

        before = anonymous_nbytes()
        (tensor,) = self.get_tensors(parameters, 1)
        largest = int(tensor.max())
        self.write_response("read_all", json.dumps([largest, anonymous_nbytes() - before]))

    def do_loan(self, parameters):
        tensor = self.empty((int(parameters),), "uint8")
        assert isinstance(tensor, torch.Tensor)
        tensor.fill_(5)
        self.send_tensors(tensor)
        tensor.fill_(6)  # too late for the reader

    def do_state(self, _parameters):
        self.write_response("state", json.dumps([self.should_continue(), self.session_dir, torch.get_num_threads()]))

    def do_fail(self, parameters):
        raise ZeroDivisionError(parameters)

    def do_text_then_tensors(self, parameters):
        self.write_response("text_then_tensors", "first the text", "a remark")
        self.send_tensors(*self.get_tensors(parameters, 2))

    def do_twice(self, _parameters):
        self.write_response("twice", "one")
        self.write_response("twice", "two")

    def do_debug(self, parameters):
        self.debug_message("seen with debug only:", parameters)
        self.write_response("debug", "ok")

    def do_load_module(self, parameters):
        """A linear module gets a weight and a bias."""
        weight, bias = self.get_tensors(parameters, 2)
        with torch.device("meta"):
            self.module = torch.nn.Linear(*reversed(weight.shape))
        self.module.load_state_dict({"weight": weight, "bias": bias}, assign=True)

    def do_where_is_module(self, _parameters):
        from support import mapping_of_tensor

        self.write_response("where_is_module", json.dumps(asdict(mapping_of_tensor(self.module.weight))))

    def do_apply_module(self, parameters):
        with torch.inference_mode():
            self.send_tensors(self.module(*self.get_tensors(parameters, 1)))

    def do_train_module(self, parameters):
        """One step here, in place."""
        self.module(*self.get_tensors(parameters, 1)).sum().backward()
        torch.optim.SGD(self.module.parameters(), lr=1).step()

    def do_status(self, parameters):
        self.write_status(parameters)
        self.write_response("status", "ok")

    def do_bad_tag(self, parameters):
        """The tag as it comes, unsplit."""
        self.write_response("bad_tag", str(self.get_tensors(parameters, 1)))


if __name__ == "__main__":
    gc.freeze()  # as in tools.py
    TorchTools(debug=True).run(sys.argv[1])
