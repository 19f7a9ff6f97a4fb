#!/bin/sh
# Starts vLLM with the given arguments. Reads its API key from the file VLLM_API_KEY_FILE, because vLLM itself reads
# it from the environment only.
set -eu
if [ -n "${VLLM_API_KEY_FILE:-}" ]; then
    VLLM_API_KEY=$(cat "$VLLM_API_KEY_FILE")
    [ -n "$VLLM_API_KEY" ] || { echo "$VLLM_API_KEY_FILE is empty" >&2; exit 1; }
    export VLLM_API_KEY
fi
exec python3 -m vllm.entrypoints.openai.api_server --host 0.0.0.0 --port 8000 --enable-prompt-embeds "$@"
