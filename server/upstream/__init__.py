"""The model servers: HTTP connections, replicas, what each replica can do, and which one answers a request.

It doesn't know clients or policies: the guard states what a request needs as `Needs`, the app what policies require.
Begin with `pool.py`; below it are `replica.py` (health and probes), `client.py` (headers) and `http1.py` (bytes).
"""
