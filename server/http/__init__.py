"""The client side of the gateway: reading a request, limits, keys, and writing the answer.

It knows nothing of how a request is judged or rewritten. Begin with `gateway.py`.
"""
