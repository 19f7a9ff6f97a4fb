"""A prompt as the classifier reads it: decoded views, overlapping windows, hashed n-grams and word statistics.

It does not know artifacts, weights, scores or policies. Begin with `views.py`, then `windows.py` and `segments.py`,
which puts both together.
"""
