"""Search for the forget items that a window resembles, and the allowlist of retain texts.

It does not know encoders, thresholds or policies. Begin with `similarity.py`; `ivf.py` is its approximate search for
large artifacts.
"""
