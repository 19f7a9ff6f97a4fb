"""The decision on one request: judge, decide, corrupt or penalise.

It knows nothing of HTTP. Begin with `guard.py`.
"""
