"""The shortest use: the worker that ships with the package, a text and a sum."""

import numpy as np

from tr_mmap import PythonSession

with PythonSession() as session:
    print(session.fetch_response("hello world", 5000))
    print(session.calculate("add", np.array([1.0, 2.0]), np.array([10.0, 20.0])))
