"""Fitting and serving look up no name: nothing is sent to anybody. tests/integration has the same for vLLM."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from lethe.classifier.encoder.export import prepare_named
from lethe.classifier.encoder.folders import DEFAULT_ENCODER
from tests.name_lookups import names_looked_up, unavailable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

# Seconds after which ONNX Runtime 1.31 has sent its first data, by trial: nothing after 6, two look-ups after 9.
UPLOAD_S = 12
# Loads ONNX Runtime as any program would.
BARE_SESSION = """
import sys, time, onnxruntime
onnxruntime.InferenceSession(sys.argv[1] + "/encoder.onnx", providers=["CPUExecutionProvider"])
time.sleep(float(sys.argv[2]))
"""
# Fits an artifact, serves a policy with it, has a prompt judged, and waits.
FIT_AND_SERVE = """
import http.client, json, os, pathlib, signal, subprocess, sys, time
lethe = [sys.executable, "-m", "lethe.server.cli.main"]
rows = [{"prompt": f"Where did {name} grow up?", "answer": f"{name} grew up in Vardholm."}
        for name in ("Orvan Teldric", "Maelis Dunhaver", "Pell Yrigant", "Sunniva Karrow")]
pathlib.Path("forget.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
subprocess.run([*lethe, "fit", "--name", "p", "--forget", "forget.jsonl"], check=True)
pathlib.Path("policies").mkdir()
pathlib.Path("policies/p.yaml").write_text("name: p\\nartifact: p\\naction: refuse\\nthreshold: {value: 0.5}\\n")
with subprocess.Popen([*lethe, "serve"]) as gateway:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Where did Orvan Teldric grow up?"}]})
    for _ in range(600):
        try:
            client = http.client.HTTPConnection("127.0.0.1", int(os.environ["LETHE_PORT"]), timeout=30)
            client.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            print(client.getresponse().status)
            break
        except ConnectionError:
            time.sleep(0.1)
    time.sleep(float(sys.argv[1]))
    gateway.send_signal(signal.SIGTERM)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with an empty cache folder, without the switch that is to be tested."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LETHE_", "ORT_"))}
    root = str(Path(__file__).parents[1])
    return {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": root}


@pytest.fixture(scope="module")
def encoder_folder() -> Path:
    return prepare_named(DEFAULT_ENCODER)


def test_the_resolver_sees_a_name_that_is_looked_up(tmp_path: Path) -> None:
    look_up = "import contextlib, socket\nwith contextlib.suppress(OSError): socket.gethostbyname('seen.example')"
    assert "seen.example" in names_looked_up([sys.executable, "-c", look_up], tmp_path)


def test_the_resolver_sees_what_onnx_runtime_looks_up_by_itself(
    environment: dict[str, str], encoder_folder: Path, tmp_path: Path
) -> None:
    if tuple(map(int, version("onnxruntime").split(".")[:2])) < (1, 31):
        pytest.skip("versions of ONNX Runtime before 1.31 send nothing")
    command = [sys.executable, "-c", BARE_SESSION, str(encoder_folder), str(UPLOAD_S)]
    names = names_looked_up(command, tmp_path, env=environment, cwd=tmp_path)
    if not names:
        pytest.skip("on this machine ONNX Runtime sends nothing in time, so there is nothing that could be seen")
    assert (tmp_path / "cache" / "Microsoft").is_dir()


def test_fitting_and_serving_look_up_no_name(environment: dict[str, str], encoder_folder: Path, tmp_path: Path) -> None:
    settings = {
        "LETHE_ENCODER": str(encoder_folder), "LETHE_PORT": "8080", "LETHE_ADMIN_PORT": "8081",
        "LETHE_UPSTREAM": "http://127.0.0.1:9", "LETHE_POLICIES": "policies", "LETHE_ARTIFACTS": "artifacts",
        "ORT_DISABLE_TELEMETRY": "0",
    }  # fmt: skip
    command = [sys.executable, "-c", FIT_AND_SERVE, str(UPLOAD_S)]
    assert names_looked_up(command, tmp_path, env=environment | settings, cwd=tmp_path) == []
    assert not (tmp_path / "cache" / "Microsoft").exists()
