"""What to do with a request: the policy file's schema and the verdict. Pure functions.

It knows nothing of requests or HTTP. Begin with `schema.py`.
"""
