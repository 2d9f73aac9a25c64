"""The runners: the code that runs an algorithm inside a contained process, a module for each kind. Not trusted."""
