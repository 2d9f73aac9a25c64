import numpy as np

from tr_mmap import Server

server = Server(framework="numpy")


@server.command("singular_values")
def singular_values(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


if __name__ == "__main__":
    server.run()
