"""``python -m tr_mmap.worker SESSION_ID`` runs the default worker; ``PythonSession()`` starts it so."""

from .default import server

if __name__ == "__main__":
    server.run()
