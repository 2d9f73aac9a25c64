"""The controller's side: ``PythonSession``, and what it needs to start a worker, send requests and take the responses.

This room never runs a handler and never imports the worker's side. It imports torch only for tensors in that framework.
"""
