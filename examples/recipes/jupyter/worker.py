"""The notebook's worker. Change a function and save: the next cell uses the new one."""

import time

from tr_mmap import Server

server = Server(framework="numpy")


@server.command("scale")
def scale(values, factor: float):
    return values * factor


@server.command("train")
def train(seconds: float):
    print(f"training for {seconds:g} s")  # shown in the cell
    time.sleep(seconds)  # stands for your training
    return "trained"


if __name__ == "__main__":
    server.run()
