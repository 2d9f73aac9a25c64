"""How control messages and the status cross: one interface, four implementations.

``mapped`` (default): JSON lines in mapped files, posix_ipc semaphores as doorbells. ``files`` (portable): JSON files
put in place by rename, polled at a falling rate. ``legacy``: such files in the legacy dialect. ``authenticated`` wraps
another channel and signs its messages. Tensors never pass through a channel, only their names do; and a channel never
knows what a message means.
"""
