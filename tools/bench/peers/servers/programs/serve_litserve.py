"""``python serve_litserve.py PORT WORKERS``: ``x * 2`` by LitServe."""

import sys

import litserve
import numpy as np


class Double(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return np.asarray(request["x"], np.float32)

    def predict(self, x):
        return x * 2

    def encode_response(self, output):
        return {"output": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Double(), accelerator="cpu", workers_per_device=int(sys.argv[2]))
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
