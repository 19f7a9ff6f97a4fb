"""Phrases that must not be said: extraction, normalisation, matching on streams.

It knows nothing of tokens. Begin with `extraction.py`.
"""
