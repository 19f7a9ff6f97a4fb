"""Policies and artifacts on disk: loading, reloading, past versions, forget requests, and the shadow report.

Nothing here knows single requests or HTTP. Begin with `load.py`, then `store.py`.
"""
