"""Attacks that try to evade a policy's detector; measures recall and false alarms under each of them.

Knows no model server: the gateway's own code judges every request in this process. Begin with `runner.py`; `attack.py`
is the command `lethe attack`.
"""
