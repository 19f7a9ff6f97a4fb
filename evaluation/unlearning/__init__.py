"""Measures unlearning: TOFU's metrics on answers from running gateways.

Begin with `run.py`.
"""
