"""Sessions on disk: where they are, the manifest of each, which process owns one, and the sweep.

Both sides of a session need this room. It starts no worker and carries no message.
"""
