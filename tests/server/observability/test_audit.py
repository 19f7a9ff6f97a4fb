"""The audit log: accepted records are written by the time of close, or counted as lost."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lethe.server.observability import audit
from lethe.server.observability.audit import AuditLog
from lethe.server.observability.metrics import Metrics


class Faulty(io.RawIOBase):
    """A raw file whose writes take as many bytes as told; None: no space, 0: not now."""

    def __init__(self, *takes: int | None) -> None:
        self.takes = list(takes)
        self.content = b""

    def write(self, data: Any) -> int:
        take = self.takes.pop(0) if self.takes else len(data)
        if take is None:
            raise OSError(28, "No space left on device")
        self.content += bytes(data[:take])
        return min(take, len(data))


class Held(io.RawIOBase):
    """A raw file that says when a write has begun, and holds it until told."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.content = b""

    def write(self, data: Any) -> int:
        self.begun.set()
        assert self.go.wait(10)
        self.content += bytes(data)
        return len(data)


def opened(monkeypatch: pytest.MonkeyPatch, file: io.RawIOBase) -> tuple[AuditLog, Metrics]:
    metrics = Metrics()
    monkeypatch.setattr(Path, "open", lambda *_, **__: file)
    return AuditLog(Path("audit.jsonl"), metrics), metrics


def counted(metrics: Metrics) -> tuple[float | None, float | None]:
    """(written, lost)"""
    values = [metrics.registry.get_sample_value(f"lethe_audit_{kind}_total") for kind in ("records", "lost")]
    return values[0], values[1]


def lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines() if line]


def test_everything_accepted_is_written_on_close(tmp_path: Path) -> None:
    metrics = Metrics()
    trail = AuditLog(tmp_path / "folder" / "audit.jsonl", metrics)
    for number in range(1000):
        trail.put({"number": number, "text": "é\n\u2028"})
    trail.close()
    written = lines((tmp_path / "folder" / "audit.jsonl").read_bytes())
    assert [record["number"] for record in written] == list(range(1000))
    assert counted(metrics) == (1000, 0)


def test_records_are_appended_to_an_existing_file(tmp_path: Path) -> None:
    for number in range(2):
        trail = AuditLog(tmp_path / "audit.jsonl", Metrics())
        trail.put({"number": number})
        trail.close()
    assert lines((tmp_path / "audit.jsonl").read_bytes()) == [{"number": 0}, {"number": 1}]


def test_without_a_path_no_record_is_kept_or_lost() -> None:
    metrics = Metrics()
    trail = AuditLog(None, metrics)
    trail.put({"number": 1})
    trail.close()
    assert counted(metrics) == (0, 0)


def test_a_file_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="audit.jsonl"):
        (tmp_path / "audit.jsonl").mkdir()
        AuditLog(tmp_path / "audit.jsonl", Metrics())


def test_a_closed_log_counts_records_as_lost(tmp_path: Path) -> None:
    metrics = Metrics()
    trail = AuditLog(tmp_path / "audit.jsonl", metrics)
    trail.close()
    trail.close()
    trail.put({"number": 1})
    assert counted(metrics) == (0, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_loses_records_and_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    trail = AuditLog(Path("/dev/full"), metrics)
    for number in range(600):
        trail.put({"number": number})
    trail.close()
    assert counted(metrics) == (0, 600)
    assert [record.message for record in caplog.records if "can't be written" in record.message]


def test_an_outage_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(audit, "BATCH_RECORDS", 1)
    file = Faulty(None, None)
    trail, metrics = opened(monkeypatch, file)
    for number in range(4):
        trail.put({"number": number})
    trail.close()
    assert lines(file.content) == [{"number": 2}, {"number": 3}]
    assert counted(metrics) == (2, 2)
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_a_partial_write_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Faulty(1, 3, 5)
    trail, metrics = opened(monkeypatch, file)
    trail.put({"number": 1})
    trail.put({"number": 2})
    trail.close()
    assert lines(file.content) == [{"number": 1}, {"number": 2}]
    assert counted(metrics) == (2, 0)


@pytest.mark.parametrize("stopped_by", [None, 0])
def test_a_truncated_line_does_not_swallow_the_next(monkeypatch: pytest.MonkeyPatch, stopped_by: int | None) -> None:
    monkeypatch.setattr(audit, "BATCH_RECORDS", 1)
    file = Faulty(5, stopped_by)
    trail, metrics = opened(monkeypatch, file)
    trail.put({"number": 1})
    trail.put({"number": 2})
    trail.close()
    assert file.content.splitlines()[0] == b'{"num'
    assert lines(file.content.partition(b"\n")[2]) == [{"number": 2}]
    assert counted(metrics) == (1, 1)


def test_complete_lines_of_a_failed_batch_count_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Held()
    trail, metrics = opened(monkeypatch, file)
    trail.put({"first": 0})
    assert file.begun.wait(10)
    # The writer is busy: these three become one batch, which stops in the middle of the second.
    for number in range(3):
        trail.put({"n": number})
    broken = Faulty(8 + 3, None)
    trail._file._file = broken
    file.go.set()
    trail.close()
    assert broken.content == b'{"n":0}\n{"n'
    assert counted(metrics) == (2, 2)


def test_a_full_queue_loses_the_record_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "QUEUE_RECORDS", 2)
    file = Held()
    trail, metrics = opened(monkeypatch, file)
    trail.put({"number": 0})
    assert file.begun.wait(10)
    for number in range(1, 5):
        trail.put({"number": number})
    file.go.set()
    trail.close()
    assert [record["number"] for record in lines(file.content)] == [0, 1, 2]
    assert counted(metrics) == (3, 2)


@pytest.mark.parametrize("waiting", [3, 50])
def test_a_blocked_file_delays_close_only_briefly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, waiting: int
) -> None:
    monkeypatch.setattr(audit, "CLOSE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(audit, "QUEUE_RECORDS", 40)
    file = Held()
    trail, metrics = opened(monkeypatch, file)
    trail.put({"number": 0})
    assert file.begun.wait(10)
    for number in range(waiting):
        trail.put({"number": number})
    begun = time.monotonic()
    trail.close()
    assert time.monotonic() - begun < 2
    assert counted(metrics) == (0, 1 + waiting)
    assert f"{1 + min(waiting, 40)} audit records were lost" in caplog.text
    file.go.set()


@pytest.mark.parametrize("value", [object(), 2**64, "\ud800", {1: 2}])
def test_only_the_record_that_is_not_json_is_lost(tmp_path: Path, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    trail = AuditLog(tmp_path / "audit.jsonl", metrics)
    trail.put({"secret text": value})
    trail.put({"number": 1})
    trail.close()
    assert lines((tmp_path / "audit.jsonl").read_bytes()) == [{"number": 1}]
    assert counted(metrics) == (1, 1)
    assert "secret" not in caplog.text


def test_several_writers_never_mix_their_lines(tmp_path: Path) -> None:
    trails = [AuditLog(tmp_path / "audit.jsonl", Metrics(), tmp_path / "turns") for _ in range(3)]
    for number in range(2000):
        for writer, trail in enumerate(trails):
            trail.put({"writer": writer, "number": number, "text": "x" * 50})
    for trail in trails:
        trail.close()
    written = lines((tmp_path / "audit.jsonl").read_bytes())
    for writer in range(3):
        assert [record["number"] for record in written if record["writer"] == writer] == list(range(2000))


def test_no_writer_continues_another_writers_truncated_line(tmp_path: Path) -> None:
    metrics = Metrics()
    whole = AuditLog(tmp_path / "audit.jsonl", metrics, tmp_path / "turns")
    torn = audit._LineFile(Faulty(5, None), tmp_path / "turns")
    written, error = torn.write([b'{"lost": 1}\n'])
    assert written == 0 and error is not None
    whole.put({"number": 1})
    whole.close()
    assert (tmp_path / "audit.jsonl").read_bytes() == b'\n{"number":1}\n'
    # A line that was finished needs no other.
    assert torn.write([b'{"kept": 1}\n']) == (1, None)
    torn.close()


def test_a_file_truncated_meanwhile_continues_at_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trails = [AuditLog(path, Metrics(), tmp_path / "turns") for _ in range(2)]
    for number, trail in enumerate(trails):
        trail.put({"number": number})
        deadline = time.monotonic() + 10
        while path.stat().st_size == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.truncate(path, 0)
    trails[0].put({"number": 2})
    for trail in trails:
        trail.close()
    assert lines(path.read_bytes()) == [{"number": 2}]
