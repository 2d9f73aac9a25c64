"""How the tensors of a request cross: one interface for each side, two implementations.

``segments`` (default): segments that both sides map and that are used again. ``legacy_files``: plain v1 files for
legacy peers, which delete their inputs after reading, overwrite files in place, and read no other layout.

A transfer never sends or receives a message and knows no status; a channel never touches a tensor. The ``TensorRef`` of
requests and responses connect the two.
"""
