"""The worker of the programs beside it, as the original framework's users write one.

Its tensors are numpy's, because such a worker starts fast. torch_worker.py is the same with torch's.
"""

from __future__ import annotations

import os
import sys
import time

from tech_renaissance import TechRenaissanceServer

import tr_mmap


class DocumentServer(TechRenaissanceServer):
    def main_logic(self, command: str, parameters: str) -> bool:
        words = parameters.replace(",", " ").split()
        if command in ("hello", "hi"):
            self.write_response("", f"{command.title()} {parameters.title()}")
        elif command in ("matmul", "add"):
            tensors = self.get_tensors(parameters, 2)
            if tensors is None:
                self.write_response("", "invalid")
            else:
                a, b = tensors
                self.send_tensors(a @ b if command == "matmul" else a + b)
                self.write_response("", "ok")
        elif command == "batch_process":
            self.send_tensors(sum(self.get_tensors(parameters, len(words))))
        elif command == "tensor_square":  # by names that both sides know: from the file of "input" to that of "output"
            (x,) = self.get_tensors("input", 1)
            tr_mmap.save(os.path.join(self.session_dir, "output.tsr"), x * x, version=1)
            time.sleep(float(parameters or 0))
            self.write_response("", "ok")
        elif command == "sleep":
            time.sleep(float(parameters))
        else:
            return False
        return True


def main(framework: str) -> None:
    DocumentServer(framework=framework).run(sys.argv[1])


if __name__ == "__main__":
    main("numpy")
