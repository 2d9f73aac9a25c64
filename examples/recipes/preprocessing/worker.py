"""Scales images to mean 0 and deviation 1, channel by channel."""

import numpy as np

from tr_mmap import Server

server = Server(framework="numpy")


@server.command("normalize")
def normalize(images):  # uint8, shape (n, height, width, channels)
    result = server.empty(images.shape, "float32")  # a loan, as in the controller
    mean, deviation = images.mean((0, 1, 2)), images.std((0, 1, 2))
    np.subtract(images, mean, out=result, casting="unsafe")
    np.divide(result, np.maximum(deviation, 1e-6), out=result, casting="unsafe")
    return result


if __name__ == "__main__":
    server.run()
