"""What is done to a flagged request: its prompt embeddings corrupted (ECO), its decoding penalised (GUARD).

ECO's primitives: `spec.CorruptSpec` says what to do; `template.ModelText` turns a request into token
ids where vLLM will see them; `table.EmbeddingTable` gives their rows; `functions` and `decoy` change
rows; `keys` seeds all randomness; `eco.Corruptor` puts these together. GUARD's: `phrases`, `matcher`,
`penalties`, `vllm_plugin`. Nothing here knows a topic, the classifier, or HTTP.
"""
