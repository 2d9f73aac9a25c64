"""The ground floor: system calls, replacing files whole, forks, identifiers, strict JSON.

Everything here is a small mechanism that knows nothing of tensors, messages or sessions. Policy lives with the callers.
"""
