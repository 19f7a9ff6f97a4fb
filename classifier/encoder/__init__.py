"""Sentence embeddings: the ONNX encoder, its export, and caches.

It knows nothing of forget items. Begin with `encoder.py`.
"""
