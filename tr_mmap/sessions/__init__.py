"""Sessions on disk: where they live, what each says of itself, who owns one, and removing what dead processes left.

Both sides of a session need this room. It starts no worker and carries no message.
"""
