"""Chooses a policy's strength by measuring the live model.

Begin with `tune.py`.
"""
