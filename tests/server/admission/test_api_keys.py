"""API keys: stored as hashes, looked up by digest, restricted to policies and models, reloaded on change."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from lethe.server.admission import api_keys
from lethe.server.admission.api_keys import Key, Keyring, KeysError
from lethe.server.errors import NotFound, Unauthorized
from lethe.server.observability.metrics import Metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def key(**fields: Any) -> Key:
    return Key.model_validate({"name": "k", "sha256": "0" * 64, "created": "2026-01-01T00:00:00Z", **fields})


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


def test_a_key_is_random_and_only_its_hash_is_stored(path: Path) -> None:
    one, two = api_keys.create_key(path, name="one"), api_keys.create_key(path, name="two")
    assert one != two and one.startswith("lethe-") and len(one) == len("lethe-") + 43
    text = path.read_text()
    assert one not in text and one.removeprefix("lethe-") not in text and api_keys.key_digest(one) in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [k.name for k in api_keys.read_keys(path)] == ["one", "two"]
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, api_keys.LOCK_FILE}


def test_rewriting_the_file_restores_its_private_mode(path: Path) -> None:
    api_keys.create_key(path, name="one")
    path.chmod(0o644)
    api_keys.create_key(path, name="two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_created_concurrently_are_all_stored(path: Path) -> None:
    threads = [threading.Thread(target=api_keys.create_key, args=(path,), kwargs={"name": f"n{i}"}) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {k.name for k in api_keys.read_keys(path)} == {f"n{i}" for i in range(12)}


def test_a_revoked_key_is_rejected(path: Path) -> None:
    token = api_keys.create_key(path, name="one")
    api_keys.create_key(path, name="two")
    api_keys.revoke_key(path, "one")
    ring = Keyring(path, Metrics())
    with pytest.raises(Unauthorized):
        ring.identify(bearer(token))
    with pytest.raises(KeysError, match=r"no key 'one' \(existing keys: two\)"):
        api_keys.revoke_key(path, "one")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "a b"}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"policies": []}, "policies"),
        ({"policies": ["a"], "exempt": ["b"]}, "policies or exempt, not both"),
        ({"concurrency": 0}, "concurrency"),
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"requests_per_minute": 0.5}, "requests_per_minute"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_invalid_key_fields_are_rejected(path: Path, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(KeysError, match=reason):
        api_keys.create_key(path, **{"name": "k", **fields})
    assert not path.exists()


def test_a_second_key_of_the_same_name_is_rejected(path: Path) -> None:
    api_keys.create_key(path, name="k")
    before = path.read_bytes()
    with pytest.raises(KeysError, match="key 'k' exists already"):
        api_keys.create_key(path, name="k")
    assert path.read_bytes() == before


ROW = {"name": "k", "sha256": "0" * 64, "created": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", '"keys"'),
        ('{"keys": {}}', '"keys"'),
        ('{"keys": [], "keys": []}', "duplicate key"),
        ('{"keys": [], "more": 1}', '"keys"'),
        ('{"keys": [5]}', "key 1"),
        ('{"keys": [{"name": "k"}]}', "key 'k': sha256"),
        (json.dumps({"keys": [{**ROW, "sha256": "0" * 63}]}), "sha256"),
        (json.dumps({"keys": [{**ROW, "policy": "a"}]}), "policy"),
        (json.dumps({"keys": [ROW, {**ROW, "sha256": "1" * 64}]}), "name 'k' occurs more than once"),
        (json.dumps({"keys": [ROW, {**ROW, "name": "l"}]}), "sha256 '000"),
    ],
)
def test_errors_in_the_file_name_the_place_and_reason(path: Path, content: str, reason: str) -> None:
    path.write_text(content)
    with pytest.raises(KeysError, match=reason) as caught:
        api_keys.read_keys(path)
    assert str(path) in str(caught.value) and "LETHE_KEYS" in str(caught.value)


def test_a_missing_file_says_how_to_create_it(path: Path) -> None:
    with pytest.raises(KeysError, match="lethe keys make"):
        Keyring(path, Metrics())


def test_a_key_is_accepted_in_both_headers(path: Path) -> None:
    token = api_keys.create_key(path, name="one")
    ring = Keyring(path, Metrics())
    raw = token.encode()
    for headers in (
        [(b"authorization", b"Bearer " + raw)],
        [(b"authorization", b"bearer   " + raw + b" ")],
        [(b"x-api-key", raw)],
        [(b"x-api-key", raw), (b"authorization", b"Bearer " + raw)],
    ):
        assert ring.identify([(b"host", b"x"), *headers]).name == "one"


def test_missing_unknown_and_conflicting_keys_are_rejected(path: Path) -> None:
    one, two = api_keys.create_key(path, name="one").encode(), api_keys.create_key(path, name="two").encode()
    ring = Keyring(path, Metrics())
    stored = api_keys.key_digest(one.decode()).encode()
    for headers, code in [
        ([], "missing_api_key"),
        ([(b"cookie", one)], "missing_api_key"),
        ([(b"authorization", one)], "invalid_api_key"),
        ([(b"authorization", b"Basic " + one)], "invalid_api_key"),
        ([(b"authorization", b"Bearer")], "invalid_api_key"),
        ([(b"x-api-key", b"")], "invalid_api_key"),
        ([(b"x-api-key", one[:-1])], "invalid_api_key"),
        ([(b"x-api-key", one.upper())], "invalid_api_key"),
        ([(b"x-api-key", stored)], "invalid_api_key"),
        ([(b"x-api-key", b"\xff" * 40)], "invalid_api_key"),
        ([(b"x-api-key", one), (b"x-api-key", two)], "invalid_api_key"),
        ([(b"x-api-key", one), (b"authorization", b"Bearer " + two)], "invalid_api_key"),
        ([(b"x-api-key", one), (b"authorization", b"Basic x")], "invalid_api_key"),
    ]:
        with pytest.raises(Unauthorized) as caught:
            ring.identify(headers)
        assert caught.value.code == code, headers


def test_all_policies_apply_unless_the_key_restricts_them() -> None:
    active, existing = ["a", "b", "c"], ["a", "b", "c", "off"]
    assert key().applicable_policies(active, existing) == {"a", "b", "c"}
    assert key(policies=["a"]).applicable_policies(active, existing) == {"a"}
    assert key(policies=["a", "off"]).applicable_policies(active, existing) == {"a"}
    assert key(exempt=["a", "gone"]).applicable_policies(active, existing) == {"b", "c"}


def test_all_policies_apply_to_a_key_with_an_unknown_policy() -> None:
    assert key(policies=["a", "renamed"]).applicable_policies(["a", "b"], ["a", "b"]) == {"a", "b"}


def test_a_key_restricted_to_models_must_name_one_of_them() -> None:
    some = key(models=["m", "n"])
    some.check_model({"model": "n"})
    for body in ({"model": "o"}, {"model": "M"}, {}, {"model": None}, {"model": ["m"]}, {"model": ""}):
        with pytest.raises(NotFound) as caught:
            some.check_model(body)
        assert caught.value.code == "model_not_found" and caught.value.param == "model"
    key().check_model({})


def test_a_valid_change_is_loaded_and_an_invalid_one_is_not(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = api_keys.create_key(path, name="one")
    metrics = Metrics()
    ring = Keyring(path, metrics)

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(name)

    second = api_keys.create_key(path, name="two")
    ring.reload()
    assert ring.identify(bearer(second)).name == "two" and value("lethe_keys") == 2
    good = path.read_bytes()
    path.write_text("{")
    ring.reload()
    ring.reload()
    assert ring.identify(bearer(first)).name == "one"
    assert (value("lethe_keys_stale"), value("lethe_keys_reload_failed_total")) == (1, 1)
    assert "keeping the current keys" in caplog.text and str(path) in caplog.text
    path.unlink()
    ring.reload()
    assert ring.identify(bearer(first)).name == "one" and value("lethe_keys_reload_failed_total") == 2
    path.write_bytes(good)
    api_keys.revoke_key(path, "one")
    ring.reload()
    assert (value("lethe_keys_stale"), value("lethe_keys")) == (0, 1)
    with pytest.raises(Unauthorized):
        ring.identify(bearer(first))


def test_keys_that_name_unknown_policies_are_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    api_keys.create_key(path, name="one", policies=["a", "b"])
    api_keys.create_key(path, name="two", exempt=["a", "c"])
    Keyring(path, Metrics()).warn_of_unknown_policies(["a"])
    assert [record.args[:2] for record in caplog.records if record.args] == [("one", "b"), ("two", "c")]
    assert "all policies apply to it" in caplog.records[0].message
    assert "all policies apply to it" not in caplog.records[1].message
