"""Fits an artifact from forget and retain rows, and changes one afterwards.

It knows no request and no policy; serving imports only `incremental.py` from here. Begin with `fit.py`, then `rows.py`
(what a fit learns from) and `features.py` (how).
"""
