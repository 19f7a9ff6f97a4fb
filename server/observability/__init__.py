"""Metrics, the audit trail, and the state of the process.

It knows nothing of requests. Begin with `metrics.py`.
"""
