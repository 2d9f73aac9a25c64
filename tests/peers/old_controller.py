"""A controller of the legacy dialect: DIRECTORY WORKER_COMMAND... Python 3.6 and newer, none of our code.

Written from the description of that dialect, as a program of its time would be: everything by hand, nothing checked
twice. Takes steps from stdin, one JSON object a line, and prints one JSON object for each:

    {"tensor": "a", "dtype": "float32", "shape": [2, 3], "values": [...]}    writes a.tsr, in place
    {"cmd": "matmul", "params": "a,b", "want": "tensors"}                    asks, and reads the files of its params
    {"cmd": "hello", "params": "you", "want": "text"}                        asks; the params are the answer
    {"request": "hello you\\n", "want": "text"}                              asks with this text as it is
    {"status": "..."}                                                        writes status.txt
    {"wait": true}                                                           waits until the worker has ended by itself
    {"exit": true}                                                           ends the worker, and itself

Words in OLD_CONTROLLER make it another program of that time: "json" reads and writes with a JSON parser, "in_place"
writes requests in place. Else it puts texts between quotes as they are, and reads what is between quotes.
"""

import json
import os
import struct
import subprocess
import sys
import time

WORDS = os.environ.get("OLD_CONTROLLER", "").split()
CODES = {"float32": 1, "int8": 2, "int32": 3, "float16": 4, "float64": 6, "int16": 7, "uint8": 8}
LETTERS = {1: "f", 2: "b", 3: "i", 4: "e", 6: "d", 7: "h", 8: "B"}
NAMES = {code: name for name, code in CODES.items()}
POLL_S = 0.004


def write_tensor(path, dtype, shape, values):
    code = CODES[dtype]
    dims = [1] * (4 - len(shape)) + shape
    header = b"TSR!" + struct.pack("<iii", 1, 64, 0) + struct.pack("<ii4i", code, len(shape), *dims)
    header += struct.pack("<qqq", len(values), 0, 0)
    with open(path, "wb") as file:
        file.write(header + struct.pack(f"<{len(values)}{LETTERS[code]}", *values))


def read_tensor(path):
    with open(path, "rb") as file:
        raw = file.read()
    if raw[:4] != b"TSR!":
        raise SystemExit(f"{path}: no TSR file: {raw[:4]!r}")
    version, header_size, _ = struct.unpack_from("<iii", raw, 4)
    code, ndim = struct.unpack_from("<ii", raw, 16)
    dims = struct.unpack_from("<4i", raw, 24)
    (count,) = struct.unpack_from("<q", raw, 40)
    if (version, header_size) != (1, 64) or dims[: 4 - ndim] != (1,) * (4 - ndim):
        raise SystemExit(f"{path}: no v1 file: {raw[:64]!r}")
    nbytes = count * struct.calcsize(LETTERS[code])
    if os.path.getsize(path) != 64 + nbytes:
        raise SystemExit(f"{path}: {os.path.getsize(path)} bytes, not {64 + nbytes}")
    values = struct.unpack_from(f"<{count}{LETTERS[code]}", raw, 64)
    return {"dtype": NAMES[code], "shape": list(dims[4 - ndim :]), "values": list(values), "header": raw[:64].hex()}


def value_of(text, key):
    """Find ``"key": "value"`` without a parser."""
    start = text.find(f'"{key}": "')
    if start < 0:
        raise SystemExit(f"no {key} in the response: {text}")
    start += len(key) + 5
    return text[start : text.find('"', start)]


class Controller:
    def __init__(self, directory, command):
        self.directory = directory
        self.write_status("ready")
        self.worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)

    def path(self, name):
        return os.path.join(self.directory, name)

    def write_status(self, text):
        with open(self.path("status.new"), "w") as file:
            file.write(text)
        os.rename(self.path("status.new"), self.path("status.txt"))

    def read_status(self):
        with open(self.path("status.txt")) as file:
            return file.read().strip()

    def wait(self, is_done):
        """Poll; False if the worker has ended meanwhile."""
        while not is_done():
            if self.worker.poll() is not None:
                return is_done()
            time.sleep(POLL_S)
        return True

    def ask(self, text, want):
        request = self.path("request.json")
        new = request if "in_place" in WORDS else request + ".new"
        with open(new, "w") as file:
            file.write(text)
        if new != request:
            os.rename(new, request)
        response = self.path("response.json")
        if not self.wait(lambda: not os.path.exists(request)) or not self.wait(lambda: os.path.exists(response)):
            return {"died": self.worker.returncode}
        with open(response) as file:
            text = file.read()
        status = self.read_status()
        found = json.loads(text)["params"] if "json" in WORDS else value_of(text, "params")
        os.remove(response)
        answer = {"params": found, "raw": text, "status": status}
        if want == "tensors" and not found.startswith("error"):
            answer["tensors"] = [read_tensor(self.path(tag + ".tsr")) for tag in found.split(",")]
        return answer

    def step(self, step):
        if "tensor" in step:
            write_tensor(self.path(step["tensor"] + ".tsr"), step["dtype"], step["shape"], step["values"])
            return {}
        if "status" in step:
            self.write_status(step["status"])
            return {}
        if "wait" in step:
            return {"exit_code": self.worker.wait(30)}
        if "exit" in step:
            self.write_status("exit")
            return {"exit_code": self.worker.wait(30), "left": sorted(os.listdir(self.directory))}
        if "request" in step:
            return self.ask(step["request"], step["want"])
        if "json" in WORDS:
            return self.ask(json.dumps({"cmd": step["cmd"], "params": step["params"]}), step["want"])
        return self.ask('{"cmd": "' + step["cmd"] + '", "params": "' + step["params"] + '"}', step["want"])


def take_steps(controller):
    for line in sys.stdin:
        step = json.loads(line)
        print(json.dumps(controller.step(step)), flush=True)
        if "exit" in step:
            break


def main(directory, *command):
    controller = Controller(directory, command)
    print(json.dumps({"worker": controller.worker.pid}), flush=True)
    take_steps(controller)


if __name__ == "__main__":
    main(*sys.argv[1:])
