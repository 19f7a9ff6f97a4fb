"""Policies and artifacts on disk: loading, reloading, versions, and forget requests over HTTP.

It knows nothing of single requests. Begin with `load.py`.
"""
