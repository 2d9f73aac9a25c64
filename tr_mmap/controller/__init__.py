"""The controller's side: ``PythonSession``, and what it needs to start a worker, send requests and take the answers.

This room never imports the worker's side, and never torch unless tensors are asked for in it.
"""
