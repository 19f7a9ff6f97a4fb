"""`make demo`, its small models and their training, and helpers that start vLLM and the gateway.

Knows the gateway only as a process with HTTP and settings. Begin with `demo.py`.
"""
