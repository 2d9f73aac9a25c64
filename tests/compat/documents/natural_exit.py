"""A worker that ends by itself: the controller sees that, and its session can be left as any other."""

from pathlib import Path

from tech_renaissance import PythonSession

session = PythonSession(str(Path(__file__).with_name("natural_exit_worker.py")), "natural_exit")
session.start()
assert session.wait_until_ready(60000)
for word in ("one", "two", "three"):
    session.send_request(f"echo {word}")
    assert session.wait_for_response(30000) == word
assert session.join(30000)
assert not session.is_alive()
print("worker has ended:", Path(session.session_dir(), "worker.log").read_text().splitlines()[0])
session.close()
