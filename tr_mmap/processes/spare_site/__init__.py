"""The place on a spare's path whose ``sitecustomize`` makes the interpreter wait. Nothing imports this package."""
