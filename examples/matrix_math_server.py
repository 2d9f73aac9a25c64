"""A worker by subclass, as it is written for the original framework: nothing in it knows of tr_mmap."""

import sys

import torch
from tech_renaissance import TechRenaissanceServer


class MatrixMathServer(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        if command.lower() == 'matmul':
            tensors = self.get_tensors(parameters, 2)
            if tensors is None:
                self.write_response('', 'invalid')
            else:
                self.send_tensors(torch.mm(tensors[0], tensors[1]))
                self.write_response('', 'ok')
        elif command.lower() == 'hello':
            self.write_response('', f'Hello {parameters.title()}')
        else:
            return False
        return True

if __name__ == "__main__":
    MatrixMathServer(debug=False).run(sys.argv[1])
