"""The prompt that vLLM makes of a request, and where the tokens of each text are in it.

The folder repeats vLLM's way from chat messages through the chat template to token ids. It knows nothing of
corruption or penalties, and no HTTP. Begin with `prompt_tokenizer.py`, then `token_spans.py`.
"""
