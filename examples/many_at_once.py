"""Drives many_at_once_worker.py: requests that do not wait for each other, progress, cancellation, values by name."""

from concurrent.futures import CancelledError
from pathlib import Path

from tr_mmap import PythonSession

worker = Path(__file__).with_name("many_at_once_worker.py")

with PythonSession(worker) as session:
    long = session.submit("long")
    quick = [session.submit(f"wait {number}") for number in range(100)]
    print("a hundred quick ones:", [future.result() for future in quick] == [str(number) for number in range(100)])
    print("the long one is done:", long.done())
    session.fetch_response("end_long")
    print("and now:", long.result())

    reports = []
    answer = session.calculate("train 1000", on_progress=lambda fraction, text: reports.append((fraction, text)))
    print(answer, "- the last report:", reports[-1])

    running = session.submit("train_for_ever", timeout_ms=None)
    while not running.running():
        pass
    running.cancel()
    try:
        running.result()
    except CancelledError:
        print("cancelled while it ran")

    answer = session.calculate("fit", {"points": [[0, 1], [1, 3], [2, 5]], "degree": 1})
    print("by name:", answer["coefficients"].round(3).tolist(), answer["degree"])
