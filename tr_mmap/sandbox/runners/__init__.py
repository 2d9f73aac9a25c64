"""What runs an algorithm inside a contained process: one module for each kind. None of them is trusted by the host."""
