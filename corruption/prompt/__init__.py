"""Where a message's tokens stand in the prompt that vLLM renders.

It knows nothing of what is corrupted. Begin with `token_spans.py`.
"""
