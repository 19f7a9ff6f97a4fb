"""The schema of what clients send: which text can reach a model, and which fields are refused. Pure functions.

It knows nothing of HTTP, policies or scores. Begin with `fields.py`.
"""
