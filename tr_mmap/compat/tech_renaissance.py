"""The original framework's name, for worker scripts that say ``from tech_renaissance import TechRenaissanceServer``.

A ``PythonSession`` puts this directory on its worker's path; nothing else does.
"""

from tr_mmap import PythonSession, Server, TechRenaissanceServer, TRException

__all__ = ["PythonSession", "Server", "TRException", "TechRenaissanceServer"]
