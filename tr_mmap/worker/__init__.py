"""The worker's side: ``Server`` and ``TechRenaissanceServer``, and how they find their session and answer requests.

This room never imports the controller's side, and never torch unless tensors are asked for in it.
"""
