"""Other names under which existing programs know the package. The controller puts this directory on a worker's path."""
