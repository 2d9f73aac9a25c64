"""Sends tensors: one before anybody asks, others as files and as results."""

import sys

import torch
from tech_renaissance import TechRenaissanceServer


class Sender(TechRenaissanceServer):
    def run(self, session_id):
        self.setup_session_dir(session_id)
        self.write_tsr_file("greeting.tsr", torch.arange(6.0).reshape(2, 3))
        self.write_status("ready")
        while self.should_continue():
            self.process_request()
        self.cleanup_session_dir()

    def main_logic(self, command, parameters):
        if command != "make":
            return False
        size = int(parameters)
        self.write_tsr_file(torch.full((size,), 7), f"{self.session_dir}/sevens.tsr")
        self.send_tensors(torch.zeros(size), torch.ones(size))
        return True


if __name__ == "__main__":
    Sender().run(sys.argv[1])
