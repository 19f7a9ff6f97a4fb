"""Constraints on the answer that steer a model to a name that must not be said: patterns, grammars, preferred tokens.

It knows the body of a request, the names in an artifact and scores; it knows no policy and no plan. Begin with
`constraints.py`.
"""
