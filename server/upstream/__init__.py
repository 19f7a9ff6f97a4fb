"""The model servers: connections, replicas, and what each replica can do.

It knows nothing of clients or policies. Begin with `pool.py`.
"""
