"""`make demo`: the real vLLM, the gateway in front, and the same questions asked three ways.

The demo model is served under three names; a policy covers each of two of them, so that one gateway
shows all three ways side by side: `demo` (no policy), `demo-corrupt`, `demo-penalize`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI

from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.demo.serving import (
    VLLM_ENV,
    StartError,
    clean_env,
    require_port,
    running,
    running_gateway,
    vllm_command,
)
from lethe.evaluation.unlearning import tofu

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "demo"
ARTIFACTS = BUILD / "artifacts"
ARTIFACT = "tofu-forget10"
BACKGROUND = ROOT / "classifier" / "background"
WAYS = {"off": "demo", "corrupt": "demo-corrupt", "penalize": "demo-penalize"}

# Keys the demo's corruption, so that everybody's demo gives the same answers. It protects nothing.
DEMO_SECRET = "lethe-demo-not-a-secret"

FORGET_ROWS = (0, 19, 41, 112, 186, 300)  # rows of evaluation.tofu.secrets()
RETAIN_ROWS = (1, 427, 905)  # rows of the taught retain facts
REAL_WORLD_ROWS = (0, 101)


@dataclass(frozen=True)
class Row:
    """One question, what may not come back (None: everything must), and the answers by way."""

    question: str
    secret: str | None
    answers: dict[str, str]
    prompt_tokens: dict[str, int]
    direct: str

    def wrong(self) -> list[str]:
        """What isn't as it should be, in words."""
        faults = []
        if self.answers["off"] != self.direct:
            faults.append("off: not what vLLM answers directly")
        if len(set(self.prompt_tokens.values())) != 1:
            faults.append(f"prompt_tokens differ: {self.prompt_tokens}")
        for way in ("corrupt", "penalize"):
            if self.secret is None and self.answers[way] != self.direct:
                faults.append(f"{way}: not what vLLM answers directly")
            if self.secret is not None and tofu.holds(self.answers[way], self.secret):
                faults.append(f"{way}: the answer holds the secret")
        if self.secret is not None and not tofu.holds(self.answers["off"], self.secret):
            faults.append("off: the model does not know it")
        return faults


def fit_artifact(name: str = ARTIFACT, folder: Path = ARTIFACTS) -> None:
    """Make the demo's artifact with `lethe fit`, unless it was made by this code from this data."""
    BUILD.mkdir(parents=True, exist_ok=True)
    forget, retain, stamp = BUILD / "forget.jsonl", BUILD / "retain.jsonl", folder / f"{name}.made-of"
    tofu.write_records(tofu.forget_facts(), forget)
    tofu.write_records([fact for facts in tofu.retain_facts() for fact in facts], retain)
    sources = [forget, retain, *sorted((ROOT / "classifier").rglob("*.py")), *sorted(BACKGROUND.glob("*.jsonl"))]
    made_of = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    if (folder / name).is_dir() and stamp.is_file() and stamp.read_text() == made_of:
        return
    command = [sys.executable, "-m", "lethe.server.cli.main", "fit", "--name", name, "--force", "--out", str(folder)]
    done = subprocess.run([*command, "--forget", str(forget), "--retain", str(retain)], cwd=ROOT, env=clean_env())
    if done.returncode:
        raise StartError("`lethe fit` failed")
    stamp.write_text(made_of)


def gateway_env(port: int, vllm_port: int, policies: Path, audit: Path) -> dict[str, str]:
    """The gateway's settings in front of the demo model."""
    return {
        "LETHE_PORT": str(port),
        "LETHE_UPSTREAM": f"http://127.0.0.1:{vllm_port}",
        "LETHE_POLICIES": str(policies),
        "LETHE_ARTIFACTS": str(ARTIFACTS),
        "LETHE_MODEL_DIR": str(FOLDERS["full"]),
        "LETHE_SECRET": DEMO_SECRET,
        "LETHE_AUDIT": str(audit),
        "LETHE_DRAIN_TIMEOUT_S": "5",
    }


def ask(client: OpenAI, model: str, question: str) -> tuple[str, int]:
    """One greedy answer and its prompt_tokens."""
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=120
    )
    assert answer.usage is not None
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens


def questions() -> list[tuple[str, str | None]]:
    secrets, retain, world = tofu.secrets(), tofu.retain_facts()[0], tofu.real_world_facts()
    return (
        [(secrets[i].question, secrets[i].entity) for i in FORGET_ROWS]
        + [(retain[i].question, None) for i in RETAIN_ROWS]
        + [(world[i].question, None) for i in REAL_WORLD_ROWS]
    )


def compare(gateway: OpenAI, direct: OpenAI) -> list[Row]:
    rows = []
    for question, secret in questions():
        got = {way: ask(gateway, model, question) for way, model in WAYS.items()}
        rows.append(
            Row(
                question,
                secret,
                {way: text for way, (text, _) in got.items()},
                {way: tokens for way, (_, tokens) in got.items()},
                ask(direct, WAYS["off"], question)[0],
            )
        )
    return rows


def table(rows: Sequence[Row], width: int) -> str:
    """The rows as columns: question, then the answer by way, wrapped to `width`."""
    column = max(16, (width - 9) // 4)
    rule = "─" * column
    lines = [_line(column, ["question", *WAYS]), "─┼─".join([rule] * 4)]
    kind = None
    for row in rows:
        now = "TO BE FORGOTTEN" if row.secret is not None else "EVERYTHING ELSE"
        if now != kind:
            kind = now
            lines.append(_line(column, [kind, "", "", ""]))
        cells = [textwrap.wrap(text, column) or ["(empty)"] for text in (row.question, *row.answers.values())]
        lines += [
            _line(column, [cell[i] if i < len(cell) else "" for cell in cells]) for i in range(max(map(len, cells)))
        ]
        faults = row.wrong()
        lines.append(_line(column, ["as it should be" if not faults else "WRONG: " + "; ".join(faults), "", "", ""]))
        lines.append("─┼─".join([rule] * 4))
    return "\n".join(lines)


def _line(column: int, cells: Sequence[str]) -> str:
    return " │ ".join(cell.ljust(column) for cell in cells).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080, help="the gateway's port")
    parser.add_argument("--vllm-port", type=int, default=8000, help="vLLM's port")
    parser.add_argument("--exit", action="store_true", help="stop afterwards; exit status 1 if a row is wrong")
    args = parser.parse_args()
    # Ctrl-C, a plain kill and a closed terminal all leave through the `finally` of whatever is running.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # Also into a pipe, a row appears when it is there; and no proxy stands between us and this machine.
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
    try:
        sys.exit(_run(args.port, args.vllm_port, stay=not args.exit))
    except StartError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped")
        sys.exit(0)


def _run(port: int, vllm_port: int, *, stay: bool) -> int:
    require_port(vllm_port, "VLLM_PORT")
    require_port(port, "PORT")
    fit_artifact()
    model = FOLDERS["full"]
    base, upstream = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{vllm_port}"
    with contextlib.ExitStack() as stack:
        command = vllm_command(model, vllm_port, list(WAYS.values()))
        stack.enter_context(running("vLLM", command, f"{upstream}/health", BUILD / "vllm.log", env=VLLM_ENV))
        env = gateway_env(port, vllm_port, ROOT / "policies" / "demo", BUILD / "audit.jsonl")
        stack.enter_context(running_gateway(BUILD / "gateway.log", env=env))
        gateway = OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
        direct = OpenAI(base_url=f"{upstream}/v1", api_key="none", max_retries=0)
        rows = compare(gateway, direct)
        print(table(rows, shutil.get_terminal_size((150, 40)).columns))
        wrong = sum(bool(row.wrong()) for row in rows)
        print(f"{len(rows) - wrong} of {len(rows)} rows are as they should be\n")
        if stay:
            _stay(base)
    return 1 if wrong else 0


def _stay(base: str) -> None:
    question = tofu.secrets()[FORGET_ROWS[0]].question
    print(
        f"Both are running. Try (or with demo, or demo-penalize, as the model):\n\n"
        f'  curl -s {base}/v1/chat/completions -H \'content-type: application/json\' -d \'{{"model": "demo-corrupt", '
        f'"messages": [{{"role": "user", "content": "{question}"}}], "temperature": 0}}\'\n\n'
        f"Logs and audit trail: {BUILD.relative_to(ROOT)}/. Ctrl-C stops both."
    )
    signal.pause()


if __name__ == "__main__":
    main()
