"""The control protocol: messages, commands, status words, MACs, and the legacy dialect.

Pure: text in, objects out, and back. This room opens nothing and waits for nothing. It reads a clock for timestamps
only.
"""
