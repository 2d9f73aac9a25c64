"""What the two sides say to each other: messages, commands, status words, MACs, and the legacy dialect.

Pure: text in, objects out, and back. This room opens nothing, waits for nothing and reads no clock but for timestamps.
"""
