"""The demo and its small models.

Begin with `demo.py`.
"""
