"""Where the gateway stands and how much it may use: the environment, read once in `main`.

What to do with a request is not here: that is policy (`server/policies.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

PREFIX = "LETHE_"
# Read on vLLM's side (corruption/vllm_plugin.py), and harmless where both sides share an environment.
OF_THE_PLUGIN = frozenset({"LETHE_VERBATIM"})


class SettingsError(ValueError):
    """A setting is unknown or unusable; the message names the variable, its value and the reason."""


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://HOST[:PORT] or https://HOST[:PORT]")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must hold no user, password, query or fragment")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError("must not end with /v1: the gateway adds it")
    return value.rstrip("/")


def _shown(variable: str, value: str) -> str:
    """The value as an error may show it: secrets, and the password of a URL, stay out of logs."""
    secret = SecretStr in get_args(Settings.model_fields[variable.removeprefix(PREFIX).lower()].annotation)
    return "" if secret else f" = {re.sub('//[^/]*@', '//…@', value)!r}"


class Settings(BaseModel):
    """Every field is the environment variable LETHE_<NAME>; `docs/SETTINGS.md` explains each."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=1, le=65535, description="Port to listen on.")
    upstream: Annotated[str, AfterValidator(_http_url)] = Field(
        "http://127.0.0.1:8000", description="Base URL of vLLM, without /v1."
    )
    upstream_key: SecretStr | None = Field(
        None,
        description="Bearer token for the gateway's own calls to vLLM. Clients' headers pass through.",
    )
    upstream_logprobs: Literal["raw", "processed"] = Field(
        "raw",
        description="What vLLM's --logprobs-mode is: raw (its default; penalised answers then come without the "
        "log-probabilities of other candidates, which would tell what is forbidden) or processed.",
    )
    policies: Path = Field(Path("policies"), description="Folder of policy files (*.yaml).")
    artifacts: Path = Field(Path("policies/artifacts"), description="Folder that holds the policies' artifacts.")
    model_dir: Path | None = Field(
        None,
        description="Folder of the served model (safetensors, tokenizer). Needed by policies that corrupt, "
        "and to judge token-id prompts.",
    )
    secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Key of the corruption's randomness, at least 16 characters. Needed by policies that "
        "corrupt. Keep it, and keep it secret.",
    )
    encoder: str | None = Field(
        None, description="Sentence encoder: a sentence-transformers name or folder. Unset: all-MiniLM-L6-v2."
    )
    audit: Path | None = Field(
        Path("lethe-audit.jsonl"), description="Audit file, one JSON line a judged request. Empty: none."
    )
    audit_prompts: bool = Field(
        False, description="Write judged text into the audit file. Off: prompts are never written."
    )
    max_body_bytes: int = Field(
        8 * 2**20, ge=1024, description="Largest request body; a larger one is refused with 413."
    )
    max_prompt_chars: int = Field(
        400_000,
        ge=1,
        description="Most characters judged in a request; a longer one is refused with 400, never cut.",
    )
    connect_timeout_s: float = Field(5.0, gt=0, description="Longest wait for a connection to vLLM.")
    read_timeout_s: float = Field(600.0, gt=0, description="Longest silence of vLLM before and between bytes.")
    judge_timeout_s: float = Field(
        10.0, gt=0, description="Longest judging of one request before `on_failure` decides."
    )
    probe_interval_s: float = Field(5.0, gt=0, description="Seconds between health checks of vLLM.")
    drain_timeout_s: int = Field(30, ge=0, description="Longest wait for open requests at shutdown.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error.")


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environ` (default: the process's).

    Raises SettingsError for a variable that starts with LETHE_ and names no setting (a mistyped name
    would otherwise be ignored in silence), and for a value that does not fit.
    """
    environ = os.environ if environ is None else environ
    given = {k: v for k, v in environ.items() if k.upper().startswith(PREFIX) and k not in OF_THE_PLUGIN}
    # Names are compared as they are: LETHE_port would be set and never read.
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    for variable in sorted(given):
        if variable not in known:
            # Compared without the prefix, which would make any two names look alike.
            names = [name.upper() for name in Settings.model_fields]
            close = get_close_matches(variable.upper().removeprefix(PREFIX), names, n=1)
            hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
            raise SettingsError(f"environment variable {variable} is not a setting{hint}")
    # An empty variable means "not set", but for the audit file it means "none".
    values = {known[name]: value or None for name, value in given.items() if value or known[name] == "audit"}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        variable = PREFIX + str(first["loc"][0]).upper()
        shown = _shown(variable, environ[variable])
        raise SettingsError(f"environment variable {variable}{shown}: {first['msg']}") from None
