"""GUARD: penalties on tokens while vLLM decodes an answer (arXiv:2505.13312).

The folder holds the penalty and its encoding, the token masks that follow from it, and the copy limits on protected
documents. It knows nothing of policies, HTTP or vLLM. Begin with `spec.py` (what a penalty is), then
`token_masks.py` (how it becomes token ids).
"""
