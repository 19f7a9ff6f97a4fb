"""Search for the forget items nearest to a window.

It knows nothing of texts or encoders. Begin with `similarity.py`.
"""
