"""Filters answers, whole or streamed, for forbidden phrases, for each API dialect.

It knows nothing of how a request was judged. Begin with `filter.py`.
"""
