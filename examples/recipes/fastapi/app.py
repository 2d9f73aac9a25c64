"""The model of the PyTorch recipe over HTTP: POST /predict {"images": [...]}."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from model import serve
from pydantic import BaseModel, Field

from tr_mmap import RemoteError, ResponseTimeout, TRException

Row = Annotated[list[float], Field(min_length=8, max_length=8)]
Image = Annotated[list[Row], Field(min_length=8, max_length=8)]
Timeout = Annotated[float, Query(ge=100, le=60_000)]  # of a whole request


class Images(BaseModel):
    images: Annotated[list[Image], Field(min_length=1, max_length=1024)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # With the process number, because `uvicorn --workers 2` runs this in two processes.
    with serve(f"fastapi-{os.getpid()}") as app.state.model:
        yield  # requests are served here; after it the worker ends, and its files go


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(request: Request, body: Images, timeout_ms: Timeout = 10_000) -> dict[str, list[int]]:
    """Not `async def`: so FastAPI calls it in a thread, and other requests go on."""
    scores = request.app.state.model.predict(torch.tensor(body.images), timeout_ms)
    return {"classes": scores.argmax(1).tolist()}


def note(error: Exception) -> None:
    """For the log alone: the text names paths. What follows its first line, the worker has printed into the log."""
    first = str(error).partition("\n")[0].removesuffix("; its last output:")
    logging.getLogger("uvicorn.error").error("%s", first)


@app.exception_handler(ResponseTimeout)
@app.exception_handler(TimeoutError)
def answer_timeout(_request: Request, error: Any) -> JSONResponse:
    note(error)
    return JSONResponse({"detail": "the model did not answer in time"}, 504)


@app.exception_handler(RemoteError)
def answer_failure(_request: Request, error: Any) -> JSONResponse:
    note(error)
    return JSONResponse({"detail": f"the model raised {error.error_type}"}, 500)


@app.exception_handler(TRException)  # WorkerDied, or why no worker could be started
def answer_death(_request: Request, error: Any) -> JSONResponse:
    note(error)
    return JSONResponse({"detail": "the model is restarted"}, 503, {"Retry-After": "5"})
