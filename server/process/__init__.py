"""Several gateway processes behind one port, and listening sockets.

Nothing here knows how a request is handled. Begin with `supervisor.py`, which starts `worker_main.py`.
"""
