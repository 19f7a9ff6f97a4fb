"""ECO: corrupted prompt embeddings (arXiv:2406.07933).

It knows nothing of policies or HTTP. Begin with `corruptor.py`.
"""
