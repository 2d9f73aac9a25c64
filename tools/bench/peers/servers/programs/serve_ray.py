"""``python serve_ray.py PORT WORKERS FOLDER``: ``x * 2`` by Ray Serve."""

import signal
import sys
import threading

import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

PORT, WORKERS, FOLDER = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


@serve.deployment(num_replicas=WORKERS, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=16)
class Double:
    async def __call__(self, request: Request):
        if request.headers["content-type"] == "application/json":
            x = np.asarray((await request.json())["x"], np.float32)
            return {"output": (x * 2).tolist()}
        x = np.frombuffer(await request.body(), np.float32)
        return Response((x * 2).tobytes(), media_type="application/octet-stream")


ray.init(num_cpus=WORKERS, include_dashboard=False, _temp_dir=FOLDER, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"enable_access_log": False})
serve.run(Double.bind())
is_over = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: is_over.set())
is_over.wait()
serve.shutdown()
ray.shutdown()
