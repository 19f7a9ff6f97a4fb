"""Forbidden phrases: which parts of an answer to forbid, and how to find them in text.

The folder holds text normalisation, phrase extraction, the trie for penalties, and the stream filter for answers. It
knows texts only: no tokens, policies or HTTP. Begin with `extraction.py`, then `normalize.py`.
"""
