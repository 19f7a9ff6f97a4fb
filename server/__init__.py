"""The gateway: HTTP in, one judged and perhaps rewritten request out to vLLM, its bytes back.

Main types and functions: `Settings` (addresses and limits), `extract_texts` (which text can reach the model), `Policy`
and `decide` (what to do), `Guard` (judge, decide, rewrite), `ReplicaPool` (the vLLM servers), `Gateway` (one request
from start to end). Knows no topic; what is judged and changed is data. Begin with `app.py`, which connects the parts,
or with `http/gateway.py`, which serves a request.
"""
