"""One module for each peer, all behind the interface of :mod:`.base`."""
