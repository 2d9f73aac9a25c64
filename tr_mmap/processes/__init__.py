"""Processes: identify one, start it, watch for its death, end it with all that it started.

Nothing here knows sessions, tensors or messages. No process is signalled before its identity is proved, because the
kernel reuses pids.
"""
