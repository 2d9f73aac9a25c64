"""The original framework's names, for programs that say ``from tech_renaissance import …``.

``tech_renaissance.py`` is that module: installed at the top level too, and put on a worker's path by the controller. It
hands over to the original where that is installed. Nothing in the package imports this room.
"""
