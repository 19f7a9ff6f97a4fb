"""ECO: corrupted prompt embeddings (arXiv:2406.07933).

The folder reads a model's embedding table, changes rows (noise, zeros, decoys) and writes them as vLLM takes them. It
knows nothing of policies, classifiers or HTTP. Begin with `corruptor.py`, then `noise.py` and `decoy.py`.
"""
