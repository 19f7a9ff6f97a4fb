"""What is done to a flagged request: corrupt its prompt embeddings (ECO) or penalise its decoding (GUARD).

`embeddings/` and `prompt/` are ECO's side, `phrases/` and `decoding/` are GUARD's and the output filter's, and
`vllm_plugin.py` runs inside vLLM. Nothing here knows a topic, a policy, the classifier or HTTP. Begin with `spec.py`
(what a policy may ask for), then `embeddings/corruptor.py` (ECO) or `decoding/spec.py` (GUARD).
"""
