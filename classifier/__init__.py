"""Text in, scores out: how likely a text asks for something that is to be forgotten.

It knows no policy, no action and no topic. Begin with `judge.py`, which reads a request downwards through `text/`,
`prefilter.py`, `encoder/`, `index/` and `scorer.py`; `training/fit.py` makes the artifacts that it needs.
"""
