"""Where the gateway stands and how much it may use: the environment, read once in `main`.

What to do with a request is not here: that is policy (`server/policy/schema.py`).
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

PREFIX = "LETHE_"
FROM_FILE = "_FILE"
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


def _http_urls(value: str) -> str:
    urls = [_http_url(part.strip()) for part in value.split(",")]
    if len(set(urls)) < len(urls):
        raise ValueError("names a replica twice")
    return ",".join(urls)


def _is_secret(variable: str) -> bool:
    return SecretStr in get_args(Settings.model_fields[variable.removeprefix(PREFIX).lower()].annotation)


def _shown(variable: str, value: str) -> str:
    """The value as an error may show it: secrets, and the password of a URL, stay out of logs."""
    return "" if _is_secret(variable) else f" = {re.sub('//[^/]*@', '//…@', value)!r}"


class Settings(BaseModel):
    """Every field is the environment variable LETHE_<NAME>; `docs/SETTINGS.md` explains each."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(
        1, ge=1, le=64, description="Processes that serve, on one port. Limits hold for all of them together."
    )
    upstream: Annotated[str, AfterValidator(_http_urls)] = Field(
        "http://127.0.0.1:8000",
        description="Base URL of vLLM, without /v1; several replicas separated by commas.",
    )
    upstream_key: SecretStr | None = Field(
        None,
        description="Bearer token for vLLM: for the gateway's own calls, and for clients' requests in place of their "
        "keys. Without LETHE_KEYS, clients' headers pass through.",
    )
    upstream_kind: Literal["vllm", "openai"] = Field(
        "vllm",
        description="openai: any server of that API, without our plugin. Policies can then watch, refuse or route.",
    )
    upstream_logprobs: Literal["raw", "processed"] = Field(
        "raw",
        description="What vLLM's --logprobs-mode is: raw (its default; penalised answers then come without the "
        "log-probabilities of other candidates, which would tell what is forbidden) or processed.",
    )
    keys: Path | None = Field(
        None, description="File of API keys, made by `lethe keys`. Unset: nobody is asked for one."
    )
    allow_anonymous: bool = Field(
        False, description="Listen on other addresses than loopback without a key file: whoever gets there is served."
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
    admin_host: str = Field("127.0.0.1", description="Address of the admin port.")
    admin_port: int | None = Field(
        None, ge=0, le=65535, description="Port of /metrics and the admin API. Unset: LETHE_PORT + 1. 0: none."
    )
    admin_key: SecretStr | None = Field(
        None, min_length=16, description="Key of the admin API, at least 16 characters. Unset: there is no admin API."
    )
    history: Path | None = Field(
        None, description="Folder of the policies' past versions. Unset: .history in the artifacts' folder."
    )
    history_keep: int = Field(50, ge=2, description="How many past versions are kept.")
    max_body_bytes: int = Field(
        8 * 2**20, ge=1024, description="Largest request body; a larger one is refused with 413."
    )
    max_prompt_chars: int = Field(
        400_000,
        ge=1,
        description="Most characters judged in a request; a longer one is refused with 400, never cut.",
    )
    max_json_depth: int = Field(100, ge=4, le=250, description="Deepest nesting of a request body.")
    max_json_values: int = Field(500_000, ge=16, description="Most values in a request body.")
    max_held_bytes: int = Field(
        256 * 2**20, ge=1024, description="Most bytes of request bodies in memory at a time, of all requests together."
    )
    max_url_bytes: int = Field(8192, ge=64, description="Longest URL; a longer one is refused with 414.")
    max_headers: int = Field(100, ge=8, description="Most headers of a request; more are refused with 431.")
    max_header_bytes: int = Field(
        65_536, ge=1024, description="URL and headers together; larger ones are refused with 431."
    )
    max_connections: int = Field(
        2048, ge=1, description="Most connections of clients. One more takes the place of an idle one, or gets 503."
    )
    max_requests: int = Field(512, ge=1, description="Most requests that are served at a time; others wait.")
    max_queue: int = Field(512, ge=0, description="Most requests that wait to be served; more get 503 at once.")
    queue_timeout_s: float = Field(30.0, gt=0, description="Longest wait to be served; then 503.")
    judge_threads: int = Field(
        2,
        ge=1,
        le=64,
        description="Judgements at a time in each worker. From two on, long prompts leave one to the short ones.",
    )
    judge_queue: int = Field(256, ge=1, description="Most requests that wait to be judged; more get 503 at once.")
    judge_wait_s: float = Field(10.0, gt=0, description="Longest wait to be judged; then 503.")
    head_timeout_s: float = Field(10.0, gt=0, description="Longest wait for a request's headers; then 408.")
    body_timeout_s: float = Field(60.0, gt=0, description="Longest wait for a request's body; then 408.")
    write_timeout_s: float = Field(
        60.0, gt=0, description="Longest wait for a client that does not read its answer; then its connection is cut."
    )
    keep_alive_s: int = Field(75, ge=1, description="How long an idle connection stays open.")
    first_byte_timeout_s: float = Field(
        600.0, gt=0, description="Longest wait for the first byte of vLLM's answer's body; then 504."
    )
    request_timeout_s: float = Field(3600.0, gt=0, description="Longest time for a whole request.")
    connect_timeout_s: float = Field(5.0, gt=0, description="Longest wait for a connection to vLLM.")
    read_timeout_s: float = Field(600.0, gt=0, description="Longest silence of vLLM before and between bytes.")
    judge_timeout_s: float = Field(
        10.0, gt=0, description="Longest judging of one request, once begun, before `on_failure` decides."
    )
    probe_interval_s: float = Field(5.0, gt=0, description="Seconds between health checks of vLLM.")
    drain_timeout_s: int = Field(30, ge=0, description="Longest wait for open requests at shutdown.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error.")

    @property
    def upstreams(self) -> tuple[str, ...]:
        """The replicas' base URLs."""
        return tuple(self.upstream.split(","))

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """Where the admin port listens; None where there is none."""
        port = self.port + 1 if self.admin_port is None else self.admin_port
        return (self.admin_host, port) if 0 < port <= 65535 else None

    @property
    def history_folder(self) -> Path:
        return self.history or self.artifacts / ".history"


# What all workers together may have. A key's own limits are counted in one place instead (`server/http/concurrency.py`).
SHARED_OUT = ("max_held_bytes", "max_connections", "max_requests", "max_queue", "judge_queue")


def of_one_worker(settings: Settings) -> Settings:
    """The settings of each of the workers: its share of what all may have together, rounded down.

    Raises SettingsError where nothing would be left, or a body that is allowed could never be held.
    """
    shares = {name: getattr(settings, name) // settings.workers for name in SHARED_OUT}
    for name, share in shares.items():
        least = {"max_queue": 0, "max_held_bytes": min(settings.max_held_bytes, settings.max_body_bytes)}.get(name, 1)
        if share < least:
            raise SettingsError(
                f"environment variable {PREFIX}{name.upper()} = {getattr(settings, name)} is too little for "
                f"LETHE_WORKERS = {settings.workers}: it is for all together, and each needs at least {least}"
            )
    return settings.model_copy(update=shares)


def check_exposure(settings: Settings) -> None:
    """Raises SettingsError for a gateway that others than this machine could reach, and that asks nobody for a key."""
    if settings.keys is None and not settings.allow_anonymous and not _is_loopback(settings.host):
        raise SettingsError(
            f"LETHE_HOST = {settings.host!r} can be reached from elsewhere, and without keys everybody is served: "
            "set LETHE_KEYS (make the file with `lethe keys make NAME`), or LETHE_ALLOW_ANONYMOUS=true where something "
            "else lets nobody in"
        )


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return bool(found) and all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)
    except (OSError, ValueError):
        return False


def _with_files(given: Mapping[str, str]) -> dict[str, str]:
    """Secrets from files: LETHE_<NAME>_FILE names one, as container platforms hand them out.

    An environment is inherited by every child and shown by every inspection of a container; a file is not.
    Raises SettingsError for a file that can't be read or is empty, and for a secret that is given twice.
    """
    found = dict(given)
    for variable in filter(_is_secret, (PREFIX + name.upper() for name in Settings.model_fields)):
        path = found.pop(variable + FROM_FILE, "")
        if not path:
            continue
        if found.get(variable):
            raise SettingsError(f"environment variables {variable} and {variable}{FROM_FILE} are both set")
        try:
            found[variable] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise SettingsError(f"environment variable {variable}{FROM_FILE} = {path!r}: {reason}") from None
        if not found[variable]:
            raise SettingsError(f"environment variable {variable}{FROM_FILE} = {path!r}: the file is empty")
    return found


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environ` (default: the process's), and in the files that it names for secrets.

    Raises SettingsError for a variable that starts with LETHE_ and names no setting (a mistyped name
    would otherwise be ignored in silence), and for a value that does not fit.
    """
    environ = os.environ if environ is None else environ
    given = {k: v for k, v in environ.items() if k.upper().startswith(PREFIX) and k not in OF_THE_PLUGIN}
    # Names are compared as they are: LETHE_port would be set and never read.
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    given = _with_files(given)
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
        shown = _shown(variable, given[variable])
        raise SettingsError(f"environment variable {variable}{shown}: {first['msg']}") from None
