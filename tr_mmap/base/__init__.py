"""Small mechanisms: system calls, replacing files whole, fork hooks, identifiers, strict JSON.

Nothing here knows tensors, messages or sessions. The callers decide what is done with them.
"""
