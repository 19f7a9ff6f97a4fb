"""Readings of a text: views, windows, n-grams and language statistics.

It knows nothing of artifacts or scores. Begin with `views.py`.
"""
