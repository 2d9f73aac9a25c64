"""The worker: computes each algorithm again with numpy, in float64, and compares."""

import numpy as np

from tr_mmap import Server

server = Server(framework="numpy")


def softmax(x):
    weights = np.exp(x - x.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


REFERENCES = {"softmax": softmax}  # yours: numpy, scipy or torch, whatever you trust


@server.command("compare")
def compare(x, result, algorithm: str, rtol: float, atol: float):
    """A report whose first word is "ok" or "WRONG"."""
    expected = REFERENCES[algorithm](x.astype(np.float64))
    if result.shape != expected.shape:
        return f"WRONG shape {result.shape}, expected {expected.shape}"
    error = np.abs(result - expected)
    is_wrong = ~(error <= atol + rtol * np.abs(expected))  # "not <=", so that NaN is wrong
    place = np.unravel_index(np.nan_to_num(error, nan=np.inf).argmax(), error.shape)
    return (
        f"{'WRONG' if is_wrong.any() else 'ok'}: {is_wrong.sum()} of {error.size} out of tolerance; "
        f"worst at {[*map(int, place)]}: {result[place]:.9g}, expected {expected[place]:.9g}"
    )


if __name__ == "__main__":
    server.run()
