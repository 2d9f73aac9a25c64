"""worker.py with torch's tensors."""

from __future__ import annotations

from worker import main

main("torch")
