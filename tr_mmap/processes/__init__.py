"""Processes: who one is, starting it, watching for its death, ending it with all that it started.

Nothing here knows of sessions, tensors or messages. No process is signalled before its identity is proved: a pid alone
names nobody.
"""
