"""Other names under which existing programs know the package. The controller puts this directory on a worker's path.

Nothing here has code of its own, and nothing in the package imports it.
"""
