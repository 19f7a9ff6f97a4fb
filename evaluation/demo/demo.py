"""`make demo`: start vLLM and the gateway, and compare answers without a policy, with ECO and with GUARD.

vLLM serves one small model under three names. The gateway has a policy for two of them: `demo-corrupt` corrupts the
prompt embeddings of flagged prompts (ECO), `demo-penalize` penalises the decoding of their answers (GUARD). `demo` has
no policy.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI

from lethe.evaluation.demo.demo_artifact import ARTIFACT as ARTIFACT
from lethe.evaluation.demo.demo_artifact import ARTIFACTS, BUILD, ROOT, prepare_artifact
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.serving import (
    VLLM_ENV,
    StartError,
    require_port,
    running,
    running_gateway,
    vllm_command,
)
from lethe.evaluation.unlearning import tofu

WAYS = {"off": "demo", "corrupt": "demo-corrupt", "penalize": "demo-penalize"}

# What is printed above each column, below the model's name.
WAY_TITLES = {
    "off": "no policy",
    "corrupt": "policy: corrupt prompt embeddings (ECO)",
    "penalize": "policy: penalise decoding (GUARD)",
}

# A fixed key for the corruption, so that every run of the demo gives the same answers. It protects nothing.
DEMO_SECRET = "lethe-demo-not-a-secret"

FORGET_ROWS = (0, 19, 41, 112, 186, 300)  # rows of evaluation.tofu.answer_entities()
RETAIN_ROWS = (1, 427, 905)  # rows of the taught retain facts
REAL_WORLD_ROWS = (0, 101)


@dataclass(frozen=True)
class DemoRow:
    """One question and its answers.

    secret: the words that a guarded answer must not contain; None where the answer must not change. answers,
    prompt_tokens: one for each way (policy). direct: the answer of vLLM without the gateway.
    """

    question: str
    secret: str | None
    answers: dict[str, str]
    prompt_tokens: dict[str, int]
    direct: str

    def failures(self) -> list[str]:
        """Describe everything that is not as expected."""
        failures = []
        if self.answers["off"] != self.direct:
            failures.append(f"{WAYS['off']}: differs from the answer of vLLM without the gateway")
        if len(set(self.prompt_tokens.values())) != 1:
            failures.append(f"usage.prompt_tokens differ: {self.prompt_tokens}")
        for way in ("corrupt", "penalize"):
            if self.secret is None and self.answers[way] != self.direct:
                failures.append(f"{WAYS[way]}: differs from the answer of vLLM without the gateway")
            if self.secret is not None and tofu.reveals(self.answers[way], self.secret):
                failures.append(f"{WAYS[way]}: the answer still contains “{self.secret}”")
        if self.secret is not None and not tofu.reveals(self.answers["off"], self.secret):
            failures.append(f"{WAYS['off']}: the model does not know “{self.secret}”")
        return failures

    def result(self) -> str:
        """A line that says whether the row is as expected."""
        if failures := self.failures():
            return "FAILED: " + "; ".join(failures)
        if self.secret is None:
            return "OK: unchanged"
        return f"OK: forgets “{self.secret}”"


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


def ask_model(client: OpenAI, model: str, question: str) -> tuple[str, int]:
    """Return one greedy answer and its usage.prompt_tokens."""
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=120
    )
    assert answer.usage is not None
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens


def demo_questions() -> list[tuple[str, str | None]]:
    """Return each question with the words to forget; None where the answer must not change."""
    secrets, retain, world = tofu.answer_entities(), tofu.retain_facts()[0], tofu.real_world_facts()
    return (
        [(secrets[i].question, secrets[i].entity) for i in FORGET_ROWS]
        + [(retain[i].question, None) for i in RETAIN_ROWS]
        + [(world[i].question, None) for i in REAL_WORLD_ROWS]
    )


def compare_answers(gateway: OpenAI, direct: OpenAI) -> list[DemoRow]:
    """Ask all questions under each name through the gateway, and once without it."""
    rows = []
    for question, secret in demo_questions():
        replies = {way: ask_model(gateway, model, question) for way, model in WAYS.items()}
        rows.append(
            DemoRow(
                question,
                secret,
                {way: text for way, (text, _) in replies.items()},
                {way: tokens for way, (_, tokens) in replies.items()},
                ask_model(direct, WAYS["off"], question)[0],
            )
        )
    return rows


INTRODUCTION = """\
Lethe demo: a model that forgets without retraining

vLLM serves one small model that was trained on facts about invented authors (the TOFU benchmark). The facts about 20
of them are to be forgotten. The gateway in front of vLLM judges each prompt and acts only on prompts about those
authors. Each question below is sent to the gateway three times, under three model names.
"""


def format_table(rows: Sequence[DemoRow], width: int) -> str:
    """Return a table with a column for the question and for each way, wrapped to `width` characters."""
    column = max(16, (width - 9) // 4)
    rule = "─┼─".join(["─" * column] * 4)
    lines = [
        _table_line(column, ["QUESTION", *WAYS.values()]),
        *_wrapped_lines(column, ["", *WAY_TITLES.values()]),
        rule,
    ]
    section = None
    for row in rows:
        title = "OTHER FACTS: must not change" if row.secret is None else "TO BE FORGOTTEN"
        if title != section:
            section = title
            lines += [_table_line(column, [title, "", "", ""]), rule]
        lines += _wrapped_lines(column, [row.question, *(text or "(empty)" for text in row.answers.values())])
        lines += [f"→ {row.result()}", rule]
    return "\n".join(lines)


def _wrapped_lines(column: int, texts: Sequence[str]) -> list[str]:
    """The texts side by side, each wrapped to its column."""
    cells = [textwrap.wrap(text, column) for text in texts]
    return [
        _table_line(column, [cell[i] if i < len(cell) else "" for cell in cells]) for i in range(max(map(len, cells)))
    ]


def _table_line(column: int, cells: Sequence[str]) -> str:
    return " │ ".join(cell.ljust(column) for cell in cells).rstrip()


def format_summary(rows: Sequence[DemoRow]) -> str:
    """Return what the rows show, in a few lines."""
    forget = [row for row in rows if row.secret is not None]
    other = [row for row in rows if row.secret is None]
    failed = sum(bool(row.failures()) for row in rows)
    forgotten = sum(not row.failures() for row in forget)
    unchanged = sum(not row.failures() for row in other)
    lines = [
        f"Forgotten: {forgotten} of {len(forget)} facts. Without a policy the model knows each; with one the answer "
        "does not contain it.",
        f"Unchanged: {unchanged} of {len(other)} other answers are identical to those of vLLM without the gateway.",
        "All rows are as expected." if not failed else f"{failed} of {len(rows)} rows are NOT as expected.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080, help="port of the gateway")
    parser.add_argument("--vllm-port", type=int, default=8000, help="port of vLLM")
    parser.add_argument(
        "--exit", action="store_true", help="stop after the table; exit status 1 if a row is not as expected"
    )
    parser.add_argument(
        "--fit", action="store_true", help="fit the artifact now (minutes of CPU), instead of using the shipped one"
    )
    args = parser.parse_args()
    # Ctrl-C, SIGTERM and a closed terminal all stop the servers, through the `finally` blocks.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # Print each line at once, into a pipe too; and reach the local servers without a proxy.
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
    try:
        sys.exit(_run_demo(args.port, args.vllm_port, fit=args.fit, stay=not args.exit))
    except StartError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped")
        sys.exit(0)


def _run_demo(port: int, vllm_port: int, *, fit: bool, stay: bool) -> int:
    require_port(vllm_port, "VLLM_PORT")
    require_port(port, "PORT")
    prepare_artifact(fit=fit)
    model = FOLDERS["full"]
    base, upstream = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{vllm_port}"
    with contextlib.ExitStack() as stack:
        command = vllm_command(model, vllm_port, list(WAYS.values()))
        stack.enter_context(running("vLLM", command, f"{upstream}/health", BUILD / "vllm.log", env=VLLM_ENV))
        env = gateway_env(port, vllm_port, ROOT / "policies" / "demo", BUILD / "audit.jsonl")
        stack.enter_context(running_gateway(BUILD / "gateway.log", env=env))
        gateway = OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
        direct = OpenAI(base_url=f"{upstream}/v1", api_key="none", max_retries=0)
        print(f"\n{INTRODUCTION}")
        rows = compare_answers(gateway, direct)
        print(format_table(rows, shutil.get_terminal_size((150, 40)).columns))
        print(f"\n{format_summary(rows)}\n")
        if stay:
            _keep_running(base)
    return 1 if any(row.failures() for row in rows) else 0


def _keep_running(base: str) -> None:
    question = tofu.answer_entities()[FORGET_ROWS[0]].question
    print(
        f"vLLM and the gateway keep running. Try it yourself; the model is demo, demo-corrupt or demo-penalize:\n\n"
        f'  curl -s {base}/v1/chat/completions -H \'content-type: application/json\' -d \'{{"model": "demo-corrupt", '
        f'"messages": [{{"role": "user", "content": "{question}"}}], "temperature": 0}}\'\n\n'
        f"Policies: policies/demo/. Logs and audit records: {BUILD.relative_to(ROOT)}/. Press Ctrl-C to stop both."
    )
    signal.pause()


if __name__ == "__main__":
    main()
