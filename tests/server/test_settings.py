"""Settings: mistyped names and invalid values are clear errors, and secrets are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from lethe.server.settings import (
    PREFIX,
    SPLIT_BETWEEN_WORKERS,
    Settings,
    SettingsError,
    check_exposure,
    read_settings,
    settings_per_worker,
)


def message(environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        read_settings(environ)
    return str(caught.value)


def test_defaults_need_no_variable() -> None:
    settings = read_settings({"PATH": "/bin", "LETHEAN": "1"})
    assert settings == Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)


def test_every_variable_reaches_its_field() -> None:
    given = {
        "host": "0.0.0.0", "port": "1234", "workers": "3", "upstream": "https://models.example/base/",
        "upstream_key": "k",
        "policies": "p", "artifacts": "a", "model_dir": "m", "chat_template": "t.jinja",
        "secret": "0123456789abcdef", "encoder": "e",
        "audit": "x.jsonl", "admin_host": "::1", "admin_port": "9", "admin_key": "0123456789abcdef", "history": "h",
        "history_keep": "9", "audit_prompts": "true", "max_body_bytes": "2048", "max_prompt_chars": "7",
        "connect_timeout_s": "1.5", "read_timeout_s": "2", "judge_timeout_s": "3", "probe_interval_s": "4",
        "judge_cpu_s": "3",
        "keys": "k.json", "allow_anonymous": "true", "max_json_depth": "9", "max_json_values": "99",
        "max_held_bytes": "4096", "max_url_bytes": "99", "max_headers": "9", "max_header_bytes": "2048",
        "max_connections": "9", "max_requests": "9", "max_queue": "9", "queue_timeout_s": "9", "judge_threads": "9",
        "judge_queue": "9", "judge_wait_s": "9", "head_timeout_s": "9", "body_timeout_s": "9",
        "write_timeout_s": "9", "keep_alive_s": "9", "first_byte_timeout_s": "9", "request_timeout_s": "9",
        "cors_origins": "https://a.example", "sse_comment_s": "5", "drain_timeout_s": "0", "decision_time_s": "2",
        "log_level": "debug", "upstream_logprobs": "processed", "upstream_kind": "openai",
        "chat_template_content_format": "string",
    }  # fmt: skip
    settings = read_settings({PREFIX + name.upper(): value for name, value in given.items()})
    assert set(given) == set(Settings.model_fields)
    assert settings.upstream == "https://models.example/base"
    assert settings.secret == SecretStr("0123456789abcdef")
    assert settings.audit == Path("x.jsonl") and settings.audit_prompts is True
    defaults = Settings()
    assert [name for name in given if getattr(settings, name) == getattr(defaults, name)] == []


@pytest.mark.parametrize("variable", ["LETHE_PROT", "LETHE_port", "lethe_port", "Lethe_Port"])
def test_a_mistyped_variable_is_an_error_with_a_suggestion(variable: str) -> None:
    assert message({variable: "1"}) == (f"environment variable {variable} is not a setting; did you mean LETHE_PORT?")


def test_an_unrelated_variable_gets_no_suggestion() -> None:
    assert message({"LETHE_XQZ": "1"}) == "environment variable LETHE_XQZ is not a setting"


@pytest.mark.parametrize(("variable", "value", "reason"), [
    ("LETHE_PORT", "http", "valid integer"),
    ("LETHE_PORT", "0", "greater than or equal to 1"),
    ("LETHE_PORT", "65536", "less than or equal to 65535"),
    ("LETHE_UPSTREAM", "localhost:8000", "http://HOST"),
    ("LETHE_UPSTREAM", "ftp://host", "http://HOST"),
    ("LETHE_UPSTREAM", "http://", "http://HOST"),
    ("LETHE_UPSTREAM", "http://host:8000/v1/", "must not end with /v1"),
    ("LETHE_UPSTREAM", "http://host?a=1", "no user, password, query"),
    ("LETHE_READ_TIMEOUT_S", "inf", "finite number"),
    ("LETHE_READ_TIMEOUT_S", "nan", "finite number"),
    ("LETHE_JUDGE_TIMEOUT_S", "0", "greater than 0"),
    ("LETHE_AUDIT_PROMPTS", "perhaps", "valid boolean"),
    ("LETHE_LOG_LEVEL", "trace", "pattern"),
    ("LETHE_MAX_BODY_BYTES", "12", "greater than or equal to 1024"),
])  # fmt: skip
def test_a_wrong_value_names_variable_value_and_reason(variable: str, value: str, reason: str) -> None:
    error_text = message({variable: value})
    assert error_text.startswith(f"environment variable {variable} = {value!r}: ") and reason in error_text


def test_a_short_secret_is_refused_and_not_printed() -> None:
    error_text = message({"LETHE_SECRET": "hunter2"})
    assert error_text.startswith("environment variable LETHE_SECRET: ") and "16" in error_text
    assert "hunter2" not in error_text


def test_secrets_are_hidden_when_settings_are_printed() -> None:
    settings = read_settings({"LETHE_SECRET": "sesame-open-yourself", "LETHE_UPSTREAM_KEY": "sk-not-to-be-seen"})
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "sesame" not in shown and "sk-not" not in shown


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("sesame-open-yourself\n", encoding="utf-8")
    settings = read_settings(
        {"LETHE_SECRET_FILE": str(path), "LETHE_ADMIN_KEY": "another-one-by-name", "LETHE_UPSTREAM_KEY_FILE": ""}
    )
    assert settings.secret is not None and settings.secret.get_secret_value() == "sesame-open-yourself"
    assert settings.upstream_key is None


@pytest.mark.parametrize(("content", "reason"), [
    (None, "No such file"),
    (b" \n", "the file is empty"),
    (b"\xff\xfe", "not UTF-8"),
])  # fmt: skip
def test_an_unusable_secret_file_stops_the_start(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    error_text = message({"LETHE_ADMIN_KEY_FILE": str(path)})
    assert (
        error_text.startswith(f"environment variable LETHE_ADMIN_KEY_FILE = {str(path)!r}: ") and reason in error_text
    )


def test_a_short_secret_in_a_file_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2", encoding="utf-8")
    error_text = message({"LETHE_SECRET_FILE": str(tmp_path / "secret")})
    assert error_text.startswith("environment variable LETHE_SECRET: ") and "hunter2" not in error_text


def test_a_secret_set_twice_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("sesame-open-yourself", encoding="utf-8")
    error_text = message({"LETHE_SECRET_FILE": str(tmp_path / "secret"), "LETHE_SECRET": "sesame-open-yourself"})
    assert "both set" in error_text and "sesame" not in error_text


def test_only_secrets_come_from_files() -> None:
    assert "LETHE_PORT_FILE is not a setting" in message({"LETHE_PORT_FILE": "/run/secrets/port"})


def test_a_password_in_the_upstream_is_refused_and_not_printed() -> None:
    error_text = message({"LETHE_UPSTREAM": "http://user:hunter2@host:8000"})
    assert "no user, password" in error_text and "hunter2" not in error_text


def test_an_empty_variable_is_the_default_except_for_audit() -> None:
    names = [PREFIX + name.upper() for name in Settings.model_fields]
    settings = read_settings(dict.fromkeys(names, ""))
    assert settings.audit is None
    assert settings == Settings(audit=None)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_PORT", "4321")
    assert read_settings().port == 4321


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "192.0.2.7", "fe80::1", "no.such.host.invalid", "*"])
def test_other_addresses_need_keys_or_explicit_permission(host: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_exposure(Settings(host=host))
    assert all(name in str(caught.value) for name in ("LETHE_HOST", "LETHE_KEYS", "LETHE_ALLOW_ANONYMOUS"))
    check_exposure(Settings(host=host, keys=Path("keys.json")))
    check_exposure(Settings(host=host, allow_anonymous=True))


def test_shares_of_workers_never_exceed_the_limit() -> None:
    whole = Settings(workers=3, max_requests=100, max_queue=2, max_held_bytes=2**26)
    share = settings_per_worker(whole)
    assert all(3 * getattr(share, name) <= getattr(whole, name) for name in SPLIT_BETWEEN_WORKERS)
    assert share.max_requests == 33 and share.max_queue == 0
    unlike = {name for name in Settings.model_fields if getattr(share, name) != getattr(whole, name)}
    assert unlike == set(SPLIT_BETWEEN_WORKERS)
    assert settings_per_worker(Settings()) == Settings()


@pytest.mark.parametrize("given", [
    {"max_requests": 2}, {"max_connections": 2}, {"judge_queue": 2}, {"max_held_bytes": 3 * 16 * 2**20 - 1},
])  # fmt: skip
def test_a_share_too_small_to_serve_is_an_error(given: dict[str, int]) -> None:
    (name,) = given
    with pytest.raises(SettingsError, match=f"LETHE_{name.upper()} = .* too little for LETHE_WORKERS = 3"):
        settings_per_worker(Settings(workers=3, **given))  # type: ignore[arg-type]
    assert settings_per_worker(Settings(**given)) == Settings(**given)  # type: ignore[arg-type]
