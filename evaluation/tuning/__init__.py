"""Choose the strength of a policy's action by measuring answers of the live model.

Knows no weights or gradients: it uses vLLM's public API and the gateway's own guard. Begin with `tuner.py`; `tune.py`
is the command `lethe tune`.
"""
