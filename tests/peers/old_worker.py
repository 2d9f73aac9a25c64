"""A worker that speaks only the legacy dialect: SESSION_ID (with TR_WORKSPACE), or DIRECTORY. Standard library only,
of Python 3.6 and newer.

Written from the description of that dialect, as a program of its time would be. It deletes its inputs after reading,
writes ``r.tsr`` (or ``r0.tsr r1.tsr ...``) in place, and its status without looking what is there.

Words in OLD_WORKER make it another program of that time:

    doubles   a response for the tensors (``result_0,result_1``), and one more for the text "ok"; the complaint about
              its inputs twice too. It never looks for the wish to exit meanwhile
    late      removes the request when its handler has returned
    raw       writes texts between quotes as they are, and reads what is between quotes
    running   its status words are "running" and "done"
    silent    writes no status at all but its first
    exits     ends by an exception at an unknown command
    in_place  writes its responses in place, in two steps
"""

import json
import os
import signal
import struct
import sys
import time

WORDS = os.environ.get("OLD_WORKER", "").split()
DOUBLES, LATE, RAW, IN_PLACE = ("doubles" in WORDS, "late" in WORDS, "raw" in WORDS, "in_place" in WORDS)
LETTERS = {1: "f", 2: "b", 3: "i", 4: "e", 6: "d", 7: "h", 8: "B"}
POLL_S = 0.004


class Tensor:
    def __init__(self, code, shape, values):
        self.code = code
        self.shape = shape
        self.values = values


class UnknownCommand(Exception):
    pass


class Worker:
    def __init__(self, directory):
        self.directory = directory

    def path(self, name):
        return os.path.join(self.directory, name)

    def write_status(self, text):
        with open(self.path("status.txt"), "w") as file:
            file.write(text)

    def is_exit_requested(self):
        try:
            with open(self.path("status.txt")) as file:
                return file.read().strip() == "exit"
        except FileNotFoundError:
            return False

    def read_tensor(self, tag):
        path = self.path(tag + ".tsr")
        with open(path, "rb") as file:
            raw = file.read()
        magic, version, header_size, _, code, ndim = struct.unpack_from("<4siiiii", raw)
        dims = struct.unpack_from("<4i", raw, 24)
        (count,) = struct.unpack_from("<q", raw, 40)
        if (magic, version, header_size) != (b"TSR!", 1, 64):
            raise ValueError(f"{tag}.tsr is no v1 file")
        if len(raw) != 64 + count * struct.calcsize(LETTERS[code]):
            raise ValueError(f"{tag}.tsr has {len(raw)} bytes")
        os.remove(path)
        return Tensor(code, list(dims[4 - ndim :]), list(struct.unpack_from(f"<{count}{LETTERS[code]}", raw, 64)))

    def write_tensor(self, name, tensor):
        dims = [1] * (4 - len(tensor.shape)) + tensor.shape
        header = struct.pack("<4s3i2i4i", b"TSR!", 1, 64, 0, tensor.code, len(tensor.shape), *dims)
        header += struct.pack("<qqq", len(tensor.values), 0, 0)
        with open(self.path(name + ".tsr"), "wb") as file:
            file.write(header + struct.pack(f"<{len(tensor.values)}{LETTERS[tensor.code]}", *tensor.values))

    def respond(self, command, params):
        response = self.path("response.json")
        while os.path.exists(response):  # the controller has not taken the last one yet
            if not DOUBLES and self.is_exit_requested():
                return
            time.sleep(POLL_S)
        if RAW:
            text = '{"cmd": "' + command + '", "params": "' + params + '"}'
        else:
            text = json.dumps({"cmd": command, "params": params})
        if IN_PLACE:
            with open(response, "w") as file:
                file.write(text[:9])
                file.flush()
                time.sleep(POLL_S)
                file.write(text[9:])
            return
        with open(response + ".new", "w") as file:
            file.write(text)
        os.rename(response + ".new", response)

    def send_tensors(self, tensors):
        response = self.path("response.json")
        while os.path.exists(response):
            time.sleep(POLL_S)
        names = [f"result_{index}" for index in range(len(tensors))]
        for name, tensor in zip(names, tensors):  # noqa: B905 - Python 3.6 has no strict=
            self.write_tensor(name, tensor)
        self.respond("", ",".join(names))

    def compute(self, command, params):
        """A text, or a list of tensors."""
        if command == "say":
            return params
        if command == "hang":
            signal.pause()
        if command == "wait":  # for somebody who opens the FIFO to write
            with open(params) as fifo:
                return fifo.read()
        if command == "die":
            print("these are my last words", flush=True)
            os._exit(int(params))
        if command == "progress":  # texts before the result and after it
            for text in ("loading", "computing"):
                self.respond(command, text)
            self.send_tensors([self.read_tensor(params)])
            for text in ("computed", "ok"):
                self.respond(command, text)
            return None
        if command == "chatter":  # texts only
            for number in range(int(params)):
                self.respond(command, f"{number} of {params}")
            return None
        if command == "linger":  # and go on after the answer
            self.respond(command, "answered")
            with open(params) as fifo:
                fifo.read()
            return None
        if command == "files":
            return " ".join(sorted(os.listdir(self.directory)))
        if command not in ("add", "matmul", "echo", "ends", "bad"):
            raise UnknownCommand(f"unknown command: {command}")
        tensors = [self.read_tensor(tag) for tag in params.split(",")]
        first = tensors[0]
        if command == "echo":
            return tensors
        if command == "add":
            sums = [a + tensors[1].values[i] for i, a in enumerate(first.values)]
            return [Tensor(first.code, first.shape, sums)]
        if command == "ends":
            return [Tensor(first.code, [1], [first.values[0]]), Tensor(first.code, [1], [first.values[-1]])]
        if command == "bad":
            return [Tensor(first.code, [len(first.values) + 1], first.values)]
        second = tensors[1]
        (rows, inner), columns = first.shape, second.shape[1]
        values = [
            sum(first.values[row * inner + k] * second.values[k * columns + column] for k in range(inner))
            for row in range(rows)
            for column in range(columns)
        ]
        return [Tensor(first.code, [rows, columns], values)]

    def state(self, text):
        if "silent" not in WORDS:
            self.write_status({"busy": "running", "ok": "done"}.get(text, text) if "running" in WORDS else text)

    def serve(self, request):
        self.state("busy")
        command = request["cmd"]
        try:
            result = self.compute(command, request["params"])
        except (UnknownCommand, OSError, ValueError, IndexError) as error:
            if isinstance(error, UnknownCommand) and "exits" in WORDS:
                raise
            if DOUBLES:
                self.respond("", "invalid")
                self.respond("", "invalid")
                self.state("ok")
            else:
                self.state(f"error: {error}")
                self.respond(command, "")
            return
        if isinstance(result, list) and DOUBLES:
            self.send_tensors(result)
            result = "ok"
        if isinstance(result, list):
            names = ["r"] if len(result) == 1 else [f"r{index}" for index in range(len(result))]
            for name, tensor in zip(names, result):  # noqa: B905
                self.write_tensor(name, tensor)
            result = ",".join(names)
        if DOUBLES:
            if result is not None:
                self.respond("", result)
            self.state("ok")
        else:
            self.state("ok")
            if result is not None:
                self.respond(command, result)

    def read_request(self):
        with open(self.path("request.json")) as file:
            text = file.read()
        if not RAW:
            return json.loads(text)
        fields = {}
        for key in ("cmd", "params"):
            start = text.index(f'"{key}": "') + len(key) + 5
            fields[key] = text[start : text.index('"', start)]
        return fields

    def run(self):
        request = self.path("request.json")
        self.write_status("ready")
        while not self.is_exit_requested():
            if os.path.exists(request):
                fields = self.read_request()
                if not LATE:
                    os.remove(request)
                self.serve(fields)
                if LATE:
                    os.remove(request)
            else:
                time.sleep(POLL_S)


def find_directory(argument):
    if os.path.isdir(argument):
        return argument
    return os.path.join(os.environ["TR_WORKSPACE"], "python_session", "tr_session_" + argument)


if __name__ == "__main__":
    Worker(find_directory(sys.argv[1])).run()
