import os
import signal

import torch
from model import serve
from worker import load_model

from tr_mmap import ResponseTimeout, WorkerDied

images = torch.rand(1000, 8, 8)
with serve() as model:
    scores = model.predict(images)
    print("right:", torch.allclose(scores, load_model()(images).softmax(1), atol=1e-5))
    for what in (signal.SIGKILL, signal.SIGSTOP):  # it dies; it hangs
        os.kill(model.session.pid, what)
        try:
            model.predict(images, timeout_ms=2_000)
        except (WorkerDied, ResponseTimeout) as error:
            print(f"{type(error).__name__} after {what.name}")
        print("a new worker answers:", torch.equal(model.predict(images, timeout_ms=90_000), scores))
