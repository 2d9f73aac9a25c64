"""A worker by subclass whose commands are words; all but one take one tensor, and use it as a tensor."""

import sys

import torch
from tech_renaissance import ServerError, TechRenaissanceServer, TSRError, export_tsr, get_tsr_info, import_tsr


class Words(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        if command == "matmul":
            tensors = self.get_tensors(parameters, 2)
            if tensors is None:
                return False
            self.send_tensors(tensors[0] @ tensors[1])
        elif command in ("relu", "double", "total"):
            t = self.get_tensors(parameters, 1)
            if t is None:
                self.write_response("", "invalid")
                return True
            results = {"relu": torch.relu, "double": lambda x: x * 2, "total": lambda x: x.sum()}
            self.send_tensors(results[command](t))
        elif command == "shape":
            self.write_response(command, "x".join(map(str, self.get_tensors(parameters, 1).shape)))
        elif command == "first":
            (x,) = self.get_tensors(parameters, 1)
            self.send_tensors(x[0], x[-1])
        elif command == "keep":
            tag, path = parameters.split()
            export_tsr(self.get_tensors(tag, 1), path)
            self.write_response(command, str(get_tsr_info(path)["num_elements"]))
        elif command == "load":
            try:
                self.send_tensors(import_tsr(parameters))
            except TSRError as error:
                raise ServerError(f"nothing to load: {error}") from error
        elif command == "hello":
            self.write_response(command, f"Hello {parameters.title()}")
        else:
            return False
        return True


if __name__ == "__main__":
    Words(debug=True).run(sys.argv[1])
