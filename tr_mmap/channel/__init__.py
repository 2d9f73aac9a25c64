"""How control messages and the status cross: one interface, three implementations, and a wrapper that signs.

``mapped`` (default): JSON lines in mapped files, POSIX semaphores as doorbells. ``files`` (portable): JSON files that a
rename puts in place, polled at a falling rate. ``legacy``: such files in the legacy dialect. ``authenticated`` wraps
another channel and signs its messages. Tensors never pass through a channel, only the names of their segments do. A
channel never knows what a message means.
"""
