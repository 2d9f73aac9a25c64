import os
import signal

import torch
from model import serve
from worker import load_model

from tr_mmap import ResponseTimeout

images = torch.rand(1000, 8, 8)
with serve(hang_ms=2_000) as model:
    scores = model.predict(images)
    print("right:", torch.allclose(scores, load_model()(images).softmax(1), atol=1e-5))
    os.kill(model.session.pid, signal.SIGKILL)  # it dies
    model.session.join()
    print("it died; a new worker answers:", torch.equal(model.predict(images, timeout_ms=90_000), scores))
    os.kill(model.session.pid, signal.SIGSTOP)  # it hangs
    try:
        model.predict(images, timeout_ms=1_000)
    except ResponseTimeout:
        print("no answer in 1 s")
    print("it hung; a new worker answers:", torch.equal(model.predict(images, timeout_ms=90_000), scores))
