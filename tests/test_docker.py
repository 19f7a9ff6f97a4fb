"""Images, Compose stack, alerts and dashboard match the code: settings, metrics, paths, ports, least privilege."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lethe.server.observability.metrics import Metrics
from lethe.server.settings import FILE_SUFFIX, PREFIX, Settings, check_exposure, read_settings

ROOT = Path(__file__).parents[1]
# The folders that are installed as packages.
PACKAGES = ("server", "classifier", "corruption", "evaluation")
# Where uv finds torch's CPU build.
TORCH_HOST = "download.pytorch.org"
DOCKER = ROOT / "docker"
# Labels that Prometheus adds itself, and its own series.
PROMETHEUS_LABELS = {"instance", "job"}
PROMETHEUS_SERIES = {"up": {"instance", "job"}, "ALERTS": {"alertname", "alertstate", "severity", "instance"}}

Stack = dict[str, Any]


@pytest.fixture(scope="module")
def stack() -> Stack:
    compose: Stack = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return compose


def stages(name: str) -> dict[str, list[list[str]]]:
    """Return stage → instructions, each as a list of words, of docker/NAME.Dockerfile."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (DOCKER / f"{name}.Dockerfile").read_text(encoding="utf-8"))
    instructions: dict[str, list[list[str]]] = {}
    stage = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = line.split()
        if words and words[0] == "FROM":
            stage = words[3]
        if words:
            instructions.setdefault(stage, []).append(words)
    return instructions


def environment(name: str, stage: str) -> dict[str, str]:
    words = [word for row in stages(name)[stage] if row[0] == "ENV" for word in row[1:]]
    return dict(word.split("=", 1) for word in words)


def default(text: str) -> str:
    """The value that Compose uses when nothing is set in .env."""
    return re.sub(r"\$\{\w+(?::-([^}]*))?[^}]*\}", lambda match: match[1] or "", text)


def folders_in(service: Stack) -> dict[str, bool]:
    """Mount point → whether it is writable."""
    parts = [entry.rsplit(":", 2) if entry.endswith(":ro") else entry.rsplit(":", 1) for entry in service["volumes"]]
    mounted = {part[1]: len(part) == 2 for part in parts}
    return mounted | {entry.partition(":")[0]: True for entry in service.get("tmpfs", ())}


def exported() -> dict[str, set[str]]:
    """Every series that a gateway exports → its labels, read from its rendered metrics."""
    metrics = Metrics()
    for name, collector in vars(metrics).items():
        if name != "registry" and name[0] != "_" and collector._labelnames:
            collector.labels(*("x" for _ in collector._labelnames))
    families = text_string_to_metric_families(metrics.render().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    board = json.loads((DOCKER / "grafana" / "dashboards" / "lethe.json").read_text(encoding="utf-8"))
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    return [rule["expr"] for rule in alerts()] + [target["expr"] for panel in panels() for target in panel["targets"]]


class QueryReader:
    """The series that a query reads, and the labels it names."""

    def __init__(self, query: str) -> None:
        self.series: dict[str, set[str]] = {}
        self.grouped: set[str] = set()
        # Grafana replaces this variable by a duration.
        promql_parser.walk(promql_parser.parse(query.replace("$__rate_interval", "1m")), self._visit)

    def _visit(self, node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            named = {matcher.name for matcher in node.matchers.matchers}
            self.series.setdefault(node.name, set()).update(named)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            self.grouped |= set(node.modifier.labels)


def unknown(query: str) -> list[str]:
    """The series and labels of a query that nothing exports."""
    known = exported()
    reader = QueryReader(query)
    missing = [name for name in reader.series if name not in known and name not in PROMETHEUS_SERIES]
    for name, labels in reader.series.items():
        labels_exported = known.get(name, set()) | PROMETHEUS_SERIES.get(name, set()) | PROMETHEUS_LABELS
        missing += [f"{name}: {label}" for label in (labels | reader.grouped) - labels_exported]
    return missing


def test_every_query_names_series_and_labels_that_are_exported() -> None:
    assert len(queries()) > 40
    assert {query: bad for query in queries() if (bad := unknown(query))} == {}


@pytest.mark.parametrize(("query", "bad"), [
    ("rate(lethe_request_total[5m])", ["lethe_request_total"]),
    ('sum(lethe_requests_total{code="500"})', ["lethe_requests_total: code"]),
    ("sum by (policy) (rate(lethe_requests_total[5m]))", ["lethe_requests_total: policy"]),
    ("lethe_requests", ["lethe_requests"]),
    ("histogram_quantile(0.9, sum by (le) (rate(lethe_audit_lost_total[5m])))", ["lethe_audit_lost_total: le"]),
])  # fmt: skip
def test_a_query_of_an_unknown_series_or_label_is_reported(query: str, bad: list[str]) -> None:
    assert unknown(query) == bad


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name for panel in panels() for target in panel["targets"] for name in QueryReader(target["expr"]).series}
    families = {
        re.sub(r"_(bucket|sum|count|created)$", "", name) for name in exported() if not name.endswith("_created")
    }
    shown = {name.removesuffix("_bucket") for name in shown}
    # Reload times are for debugging only; failures to read the key file show as `lethe_keys_stale`.
    assert families - shown == {"lethe_policies_reload_seconds", "lethe_keys_reload_failed_total"}


def test_label_values_in_queries_exist_in_the_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "server").rglob("*.py"))
    for query in queries():
        for values in re.findall(r'(?:reason|outcome|stage)=?[!~]*"([^"]+)"', query):
            for value in values.split("|"):
                assert f'"{value}"' in code, (query, value)


def test_every_alert_has_a_severity_and_an_action() -> None:
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "warn")
        assert set(rule["annotations"]) == {"summary", "action"}
        reader = QueryReader(rule["expr"])
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])):
            labels = set.union(*(exported().get(name, set()) | PROMETHEUS_LABELS for name in reader.series))
            assert label in labels and (not reader.grouped or label in reader.grouped), rule["alert"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus, which is not installed")
def test_alerts_fire_when_they_should() -> None:
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        run = subprocess.run(["promtool", *command], cwd=DOCKER / "prometheus", capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr


def test_prometheus_finds_the_gateway_and_both_replicas(stack: Stack) -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    gateway, vllm = config["scrape_configs"]
    [discovery] = gateway["dns_sd_configs"]
    names = stack["services"]["gateway"]["networks"]["monitoring"]["aliases"]
    assert (
        discovery["names"] == names and str(discovery["port"]) == environment("gateway", "gateway")["LETHE_ADMIN_PORT"]
    )
    upstreams = stack["services"]["gateway"]["environment"]["LETHE_UPSTREAM"].split(",")
    assert [f"http://{target}" for target in vllm["static_configs"][0]["targets"]] == upstreams
    rules = [DOCKER / "prometheus" / name for name in config["rule_files"]]
    assert rules and all(path.is_file() for path in rules)


def test_both_profiles_have_the_replicas_of_the_gateway(stack: Stack) -> None:
    expected = {f"{name}:8000" for name in ("vllm-a", "vllm-b")}
    upstreams = stack["services"]["gateway"]["environment"]["LETHE_UPSTREAM"]
    assert {url.removeprefix("http://") for url in upstreams.split(",")} == expected
    for profile in ("gpu", "cpu"):
        replicas = [one for one in stack["services"].values() if one.get("profiles") == [profile]]
        aliases = {name for one in replicas for name in one["networks"]["inference"]["aliases"]}
        assert {f"{name}:8000" for name in aliases} == expected and len(replicas) == 2


def test_vllm_can_be_reached_through_the_gateway_only(stack: Stack) -> None:
    for name, service in stack["services"].items():
        if name.startswith("vllm"):
            assert set(service["networks"]) == {"inference"} and "ports" not in service
            assert service["environment"]["VLLM_API_KEY_FILE"] == "/run/secrets/upstream_key"
    assert stack["networks"]["inference"]["internal"] and stack["networks"]["monitoring"]["internal"]
    assert {name for name, one in stack["services"].items() if "inference" in one["networks"] and "ports" in one} == {
        "gateway"
    }


def test_only_loopback_ports_are_published_and_no_admin_port(stack: Stack) -> None:
    published = [default(port) for service in stack["services"].values() for port in service.get("ports", ())]
    assert sorted(published) == ["127.0.0.1:3000:3000", "127.0.0.1:8080:8080"]


def test_every_container_has_least_privilege(stack: Stack) -> None:
    for name, service in stack["services"].items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service and "cap_add" not in service and "network_mode" not in service, name
        assert {"max-size", "max-file"} <= set(service["logging"]["options"]), name
        assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"]), name


def test_images_run_as_a_numeric_user_that_is_not_root(stack: Stack) -> None:
    for name, last in (("gateway", ["gateway"]), ("vllm", ["cpu", "gpu"])):
        for stage in last:
            users = [row[1] for row in stages(name)[stage] if row[0] == "USER"]
            assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), stage
    for name, service in stack["services"].items():
        if "build" not in service:
            assert re.match(r"[1-9]\d*:", service["user"]), name
        else:
            assert "user" not in service, name


def test_images_are_pinned_checked_and_stopped_by_sigterm() -> None:
    for name in ("gateway", "vllm"):
        text = (DOCKER / f"{name}.Dockerfile").read_text(encoding="utf-8")
        bases = re.findall(r"(?m)^ARG (?:PYTHON|VLLM)=(\S+)", text)
        assert bases and all(re.search(r":v?\d+\.\d+\.\d+", base) for base in bases)
        for stage, rows in stages(name).items():
            if any(row[0] == "ENTRYPOINT" for row in rows):
                assert {"HEALTHCHECK", "STOPSIGNAL", "USER"} <= {row[0] for row in rows}, stage
    assert "vllm/vllm-openai:v0.32.0" in (DOCKER / "vllm.Dockerfile").read_text(encoding="utf-8")


def test_third_party_images_are_pinned(stack: Stack) -> None:
    others = [service["image"] for service in stack["services"].values() if "build" not in service]
    assert len(others) == 2 and all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in others)


def test_hadolint_reports_nothing() -> None:
    command = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([command, *DOCKER.glob("*.Dockerfile")], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_lethe_variable_is_a_setting(stack: Stack) -> None:
    variables = {**environment("gateway", "gateway"), **stack["services"]["gateway"]["environment"]}
    ours = {name: default(value) for name, value in variables.items() if name.startswith(PREFIX)}
    assert len(ours) >= 12
    assert {name.removesuffix(FILE_SUFFIX).removeprefix(PREFIX).lower() for name in ours} <= set(Settings.model_fields)
    plain = {name: value for name, value in ours.items() if not name.endswith(FILE_SUFFIX)}
    settings = read_settings(plain)
    check_exposure(settings)
    assert settings.keys is not None and not settings.allow_anonymous and not settings.audit_prompts


def test_no_secret_is_written_in_the_files(stack: Stack) -> None:
    for service in stack["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("SECRET|PASSWORD|KEY", name) and "KVCACHE" not in name and name != "LETHE_KEYS":
                assert str(value).startswith("/run/secrets/") and name.endswith("_FILE"), name
        mounted = {f"/run/secrets/{name}" for name in service.get("secrets", ())}
        assert {value for value in service.get("environment", {}).values() if "/run/" in str(value)} == mounted
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert all(secret["file"].startswith("./secrets/") for secret in stack["secrets"].values())
    assert {"secrets/", ".env"} <= set(ignored)
    assert not re.search("(?i)(secret|password|_key)=", (ROOT / ".env.example").read_text(encoding="utf-8"))


def test_env_example_has_every_variable_with_its_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    used = dict(re.findall(r"\$\{(\w+)(?::-([^}]*))?", text))
    assert set(example) == set(used)
    assert {name: value for name, value in example.items() if name != "MODEL_DIR"} == {
        name: value for name, value in used.items() if name != "MODEL_DIR"
    }


def test_every_folder_that_the_gateway_writes_is_a_volume(stack: Stack) -> None:
    service = stack["services"]["gateway"]
    plain = {name: value for name, value in environment("gateway", "gateway").items() if name.startswith(PREFIX)}
    settings = read_settings(plain)
    assert settings.keys is not None and settings.audit is not None
    mounted = folders_in(service)
    written_folders = [
        settings.policies,
        settings.artifacts,
        settings.history_folder,
        settings.keys.parent,
        settings.audit.parent,
    ]
    for folder in written_folders:
        assert any(mounted.get(str(one)) for one in (folder, *folder.parents)), folder
    made = " ".join(word for row in stages("gateway")["gateway"] if row[0] == "RUN" for word in row)
    volumes = [path for path, writable in mounted.items() if writable and path != "/tmp"]
    assert "-o 10001 -g 10001" in made and all(path in made for path in volumes)
    # Past versions are hard links to artifacts, so both must be in one volume.
    assert settings.artifacts in settings.history_folder.parents


def test_vllm_reads_indexes_from_the_gateways_artifacts(stack: Stack) -> None:
    artifacts = environment("gateway", "gateway")["LETHE_ARTIFACTS"]
    for stage, profile in (("cpu", "vllm-cpu-a"), ("gpu", "vllm-gpu-b")):
        variables = environment("vllm", stage)
        mounted = folders_in(stack["services"][profile])
        assert variables["LETHE_VERBATIM"] == artifacts and mounted[artifacts] is False
        assert mounted[variables["HOME"]] is True


def test_the_stop_grace_period_leaves_time_to_drain(stack: Stack) -> None:
    gateway = stack["services"]["gateway"]
    grace = int(gateway["stop_grace_period"].removesuffix("s"))
    assert grace >= int(gateway["environment"]["LETHE_DRAIN_TIMEOUT_S"]) + 10


def test_containers_wait_for_their_dependencies(stack: Stack) -> None:
    services = stack["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy", (name, needed)
            # The gateway must not wait for a replica of a profile that does not run.
            assert how.get("required", True) is ("profiles" not in services[needed])
            assert "build" in services[needed] or "healthcheck" in services[needed]
    assert set(services["gateway"]["depends_on"]) == {name for name in services if name.startswith("vllm")}


def test_folders_mounted_from_the_repository_exist(stack: Stack) -> None:
    paths = [entry.split(":")[0] for one in stack["services"].values() for entry in one["volumes"]]
    ours = [path for path in paths if path.startswith("./")]
    assert len(ours) == 3 and all((ROOT / path).is_dir() for path in ours)


def test_the_build_context_has_only_files_that_are_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    # The last rule takes out what Python leaves beside its sources.
    assert rules[0] == "*" and rules.pop() == "**/__pycache__"
    assert all(rule.startswith("!") for rule in rules[1:])
    copied = {
        word
        for name in ("gateway", "vllm")
        for rows in stages(name).values()
        for row in rows
        if row[0] == "COPY" and not row[1].startswith("--from")
        for word in row[1:-1]
    }
    assert copied
    for word in copied:
        assert any(rule[1:].startswith(word) or Path(word).match(rule[1:]) for rule in rules[1:]), word


def test_every_package_folder_is_in_the_build_context_by_name() -> None:
    # buildah and Docker's older builder don't look into a folder that only a wildcard names.
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    folders = [path.parent.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")]
    for folder in folders:
        named = {f"!{one}" for one in (folder, *folder.parents)} | {f"!{folder}/*.py"}
        assert named & set(rules), folder


def why_no_image_can_be_built() -> str | None:
    """Why this machine can't build the images; None if it can."""
    for program in ("buildah", "debootstrap", "unshare"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if os.geteuid():
        return "a base image can be made by root only"
    if "TORCH=" not in os.environ.get("BUILDAH_OPTIONS", ""):
        try:
            socket.getaddrinfo(TORCH_HOST, 443)
        except OSError:
            return f"{TORCH_HOST}, where torch's CPU build is, can't be reached; name a mirror in BUILDAH_OPTIONS"
    return None


@pytest.mark.skipif(why_no_image_can_be_built() is not None, reason=str(why_no_image_can_be_built()))
@pytest.mark.parametrize("kind", ["gateway", "vllm"])
def test_the_image_is_built_and_works_without_a_network(kind: str) -> None:
    # Minutes and some GB for each image: buildah's presence says that this is wanted.
    run = subprocess.run([DOCKER / "check_images.sh", kind], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]


def test_the_plugin_is_installed_without_dependencies() -> None:
    for stage in ("cpu-build", "gpu"):
        commands = " ".join(word for row in stages("vllm")[stage] for word in row)
        assert re.search(r"install [^&]*--no-deps /wheels/\*\.whl", commands), stage
    assert "--enable-prompt-embeds" in (DOCKER / "vllm.sh").read_text(encoding="utf-8")


def test_the_grafana_files_match_each_other(stack: Stack) -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "lethe.yml").read_text("utf-8"))["providers"]
    mounted = folders_in(stack["services"]["grafana"])
    assert mounted[provider["options"]["path"]] is False and mounted["/etc/grafana/provisioning"] is False
    used = {panel["datasource"]["uid"] for panel in panels()}
    used |= {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert used == {source["uid"]} and source["url"] == "http://prometheus:9090"


class _HealthHandler(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def health_server() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), _HealthHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_follows_the_status(
    health_server: HTTPServer, monkeypatch: pytest.MonkeyPatch, status: int, healthy: bool
) -> None:
    monkeypatch.setattr(_HealthHandler, "status", status)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    run = subprocess.run(
        [sys.executable, "-I", DOCKER / "health.py", str(health_server.server_port)], capture_output=True
    )
    assert (run.returncode == 0) is healthy


def test_the_health_check_fails_without_an_answer() -> None:
    # A port that is bound but does not listen: connections to it are refused.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        run = subprocess.run([sys.executable, "-I", DOCKER / "health.py", str(port)], capture_output=True)
    assert run.returncode != 0


def test_vllm_reads_its_key_file_and_refuses_an_empty_one(tmp_path: Path) -> None:
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\necho "$VLLM_API_KEY $*"\n', encoding="utf-8")
    fake.chmod(0o755)
    key = tmp_path / "key"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "VLLM_API_KEY_FILE": str(key)}

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", DOCKER / "vllm.sh", "--model", "/m"], env=env, capture_output=True, text=True)

    assert start().returncode != 0
    key.write_text("", encoding="utf-8")
    assert start().returncode != 0
    key.write_text("a-key\n", encoding="utf-8")
    assert start().stdout.startswith("a-key -m vllm.entrypoints.openai.api_server")
    assert "--model /m" in start().stdout and "--enable-prompt-embeds" in start().stdout
