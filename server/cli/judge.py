"""`lethe judge`: try a policy on a file of prompts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from lethe.server.cli.explain import explanation
from lethe.server.errors import BadRequest
from lethe.server.guard.guard import Guard
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.policy.verdict import Finding
from lethe.server.policy_store.load import find_policy, load_judging
from lethe.server.settings import Settings

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(commands: Commands) -> None:
    """Add `lethe judge`."""
    command = commands.add_parser("judge", help="try a policy on a file of prompts", description=judge_file.__doc__)
    command.add_argument(
        "--policy", required=True, metavar="POLICY", help="name of a policy in LETHE_POLICIES, or a policy file"
    )
    command.add_argument(
        "--encoder", metavar="NAME", help="name or folder of a sentence-transformers model (default: LETHE_ENCODER)"
    )
    command.add_argument(
        "prompts", type=Path, metavar="FILE",
        help='JSON lines: a string, {"prompt": …}, {"text": …} or {"messages": [...]}',
    )  # fmt: skip
    command.add_argument(
        "--explain", action="store_true",
        help="print a readable table instead: which name, fact, window and view decided, and what was missing",
    )  # fmt: skip
    command.set_defaults(run=judge_file)


def judge_file(args: argparse.Namespace, settings: Settings) -> int:
    """Judge the prompts or request bodies of a file and print one JSON verdict per line: whether it is flagged, score,
    threshold, and the number of the nearest forget item. No model is asked. Exit status 1 if a line is invalid."""
    policy = find_policy(args.policy, settings)
    guard = load_judging(settings, policy, encoder=args.encoder)
    # Not splitlines: JSON strings may contain other line separators unescaped.
    lines = args.prompts.read_text(encoding="utf-8-sig").split("\n")
    invalid = 0
    for number, line in enumerate(tqdm(lines, file=sys.stderr, disable=not sys.stderr.isatty()), 1):
        if line.strip():
            try:
                request = _parse_line(guard, line)
                finding = guard.judge(request, {policy.name: guard.policies[policy.name]}).findings[0]
                if args.explain:
                    lines_of_prompt = explanation(finding, guard.artifacts[policy.artifact], request.texts)
                    print(f"line {number}:", *lines_of_prompt, sep="\n", flush=True)
                else:
                    print(json.dumps({"line": number, **_record(request, finding)}), flush=True)
            except (ValueError, BadRequest) as error:
                invalid += 1
                print(f"{args.prompts}:{number}: {error}", file=sys.stderr)
    return 1 if invalid else 0


def _parse_line(guard: Guard, line: str) -> ParsedRequest:
    row = json.loads(line)
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, dict):
        raise ValueError("a row is a string or an object with prompt, text or messages")
    if "text" in row and "prompt" not in row:
        row = {"prompt": row["text"]}
    if "messages" not in row and "prompt" not in row:
        raise ValueError("a row needs prompt, text or messages")
    return guard.parse("chat" if "messages" in row else "completions", row)


def _record(request: ParsedRequest, finding: Finding) -> dict[str, object]:
    nearest = finding.score.nearest
    return {**finding.to_record(request.place(finding.score.text)), "nearest": nearest[0] if nearest else None}
