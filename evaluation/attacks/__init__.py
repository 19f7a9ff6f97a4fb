"""Evasion attacks on a policy, and their recall and false alarms.

Begin with `runner.py`.
"""
