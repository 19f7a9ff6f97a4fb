"""Who may send requests, and how many: API keys, rate limits, concurrency, memory for bodies, connections.

It knows nothing of what a request asks for. Begin with `concurrency.py`.
"""
