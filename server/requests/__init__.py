"""The schema of client requests: routes, fields, which text can reach a model, and which fields are refused.

All functions are pure; nothing here knows HTTP, policies or scores. Begin with `extract.py`, which applies the tables
of `fields.py`.
"""
