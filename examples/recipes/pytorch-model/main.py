"""One image, a thousand images in batches, a worker that dies, a worker that hangs."""

import os
import signal

import torch
from model import serve
from worker import load_model

from tr_mmap import ResponseTimeout, WorkerDied

images = torch.rand(1000, 8, 8)
with serve() as model:
    print("one image:", tuple(model.predict(images[:1]).shape))
    scores = model.predict(images)
    print("1000 images are right:", torch.allclose(scores, load_model()(images).softmax(1), atol=1e-5))

    os.kill(model.session.pid, signal.SIGKILL)  # as the kernel does when memory runs out
    try:
        model.predict(images)
    except WorkerDied as error:
        print("the worker died with exit code", error.exit_code)
    print("a new one answers:", torch.equal(model.predict(images), scores))

    os.kill(model.session.pid, signal.SIGSTOP)  # from now on it hangs
    try:
        model.predict(images, timeout_ms=500)
    except ResponseTimeout as error:
        print("no answer after 500 ms, the worker is", error.state)
    print("a new one answers:", torch.equal(model.predict(images), scores))
