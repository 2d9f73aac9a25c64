"""Fixtures that the tests of segments and those of tags share."""

from segment_sides import directory, limited, module_sides, sides

__all__ = ["directory", "limited", "module_sides", "sides"]
