"""The gateway: HTTP in, one judged and perhaps rewritten request out to vLLM, its bytes back.

Primitives: `Settings` (where and how much), `Policy` and `decide` (what to do), `fields.extract` (which
text can reach the model), `Guard` (judge, decide, rewrite), `Upstream` (the way to vLLM), `create_app`.
"""
