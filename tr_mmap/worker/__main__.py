"""``python -m tr_mmap.worker SESSION_ID`` runs the default worker; ``PythonSession()`` does that."""

from .default import server

if __name__ == "__main__":
    server.run()
