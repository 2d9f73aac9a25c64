"""The worker's side: ``Server`` and ``TechRenaissanceServer``, and how they find their session and answer requests.

This room never starts a worker and never imports the controller's side. It imports torch only for tensors in that
framework.
"""
