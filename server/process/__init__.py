"""Several gateway processes behind one port.

It knows nothing of requests. Begin with `supervisor.py`.
"""
