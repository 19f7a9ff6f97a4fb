"""Decoders of text that was disguised word by word or letter by letter: one module for each kind of disguise.

Each takes a text and returns edits; none knows a view, a window or a score. Begin with `records.py`.
"""
