"""Fits an artifact from forget and retain rows.

Serving imports none of it. Begin with `fit.py`.
"""
