"""The controller ends its worker: by force, then a new one by asking."""

from pathlib import Path

from tech_renaissance import PythonSession

session = PythonSession(Path(__file__).with_name("termination_worker.py"), "termination")
session.start()
assert session.wait_until_ready(60000)
assert session.fetch_response("first", 30000) == "first in termination"
session.terminate()
assert session.join(30000)
assert not session.is_alive()

session.start()
assert session.wait_until_ready(60000)
assert session.fetch_response("second", 30000) == "second in termination"
assert session.please_exit(30000)
assert not session.is_alive()
print("both workers have ended")
