"""The worker of ``calls.py``, written twice as users write it: by a decorator, and as a subclass. Run by a session.

Arguments: ``decorator`` or ``subclass``, then the framework.
"""

import sys

from tr_mmap import Server, TechRenaissanceServer


def by_decorator(framework: str) -> Server:
    server = Server(framework=framework)

    @server.command("text")
    def text(words: str) -> str:
        return words

    @server.command("echo")
    def echo(x):
        return x

    @server.command("loan")
    def loan(x):
        return server.empty(x.shape)

    @server.command("three")
    def three(x):
        return x, x, x

    @server.command("named")
    def named(x):
        return {"y": x, "count": 1}

    @server.command("fail")
    def fail():
        raise ValueError("as asked")

    @server.command("grow")
    def grow(x):
        return x * 1.5

    return server


class Subclass(TechRenaissanceServer):
    def main_logic(self, command: str, parameters: str) -> bool:
        if command == "text":
            self.write_response(command, parameters)
        elif command == "fail":
            raise ValueError("as asked")
        else:
            (x,) = self.get_tensors(parameters, 1) or [None]
            if command == "loan":
                self.send_tensors(self.empty(x.shape))
            else:
                self.send_tensors(
                    *{"echo": lambda: (x,), "three": lambda: (x, x, x), "grow": lambda: (x * 1.5,)}[command]()
                )
        return True


if __name__ == "__main__":
    kind, framework = sys.argv[-2:]
    (by_decorator(framework) if kind == "decorator" else Subclass(framework=framework)).run()
