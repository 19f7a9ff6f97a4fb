"""GUARD: penalties on tokens while decoding (arXiv:2505.13312).

It knows nothing of policies or HTTP. Begin with `spec.py`.
"""
