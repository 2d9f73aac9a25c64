"""How the tensors of a request cross: one interface for each side, two implementations.

``segments`` (default): recycled shared memory, mapped by both sides. ``legacy_files``: plain v1 files for legacy peers,
which delete their inputs after reading, overwrite files in place, and read nothing else.

A transfer never sends or receives a message and knows no status; a channel never touches a tensor. What crosses between
the two are the ``TensorRef`` of requests and responses.
"""
