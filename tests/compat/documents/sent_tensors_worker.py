"""Receives tensors, by tags and by the names of their files."""

import os
import sys

from tech_renaissance import TechRenaissanceServer


class Receiver(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        if command == "sum":
            value = sum(float(x.sum()) for x in self.get_tensors(parameters))
        elif command == "read":
            by_tag = self.read_tsr_file(parameters)
            by_path = self.read_tsr_file(os.path.join(self.session_dir, f"{parameters}.tsr"))
            value = float((by_tag + by_path).sum())
        else:
            return False
        self.write_response(command, str(value))
        return True


if __name__ == "__main__":
    Receiver().run(sys.argv[1])
