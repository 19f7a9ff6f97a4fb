"""Do guarded answers reveal secrets, does `usage` show that a prompt was flagged, and do other answers change?

    python -m benchmarks.answers [--json FILE]

vLLM with the demo's model, and the gateway with the demo's policies and one that does both actions. Secrets that are
names, titles, numbers or dates are requested in the words of the forget set and in paraphrases that no fit has seen:
greedy (whole and streamed) and sampled at temperature 1 (streamed). `usage.prompt_tokens` is compared with that of vLLM
without the gateway on every forget question. On all other facts that the model was taught, an answer counts as changed
if it differs in one character from vLLM's own. For the quality of answers use `lethe evaluate`.

Lines: revealed secrets by policy, wording and decoding, with the number of answers and the 95 % interval; equal
`usage`; changed answers. Exit status 1 if a policy that penalises revealed a secret, or if `usage` differed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from openai import OpenAI
from tqdm import tqdm

from benchmarks.demo_servers import DemoServers, demo_servers
from lethe.evaluation.demo import demo
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.client import ChatClient
from lethe.evaluation.unlearning.confidence import estimate_share
from lethe.server.policy.files import read_policies

WAYS = {**demo.WAYS, "both": "demo-both"}
GUARDED = ("corrupt", "penalize", "both")
# Must not reveal a secret. Corruption alone is statistical: the model may guess right, as one that never knew may.
STRICT = ("penalize", "both")
# Requests at once.
CONCURRENT = 16


@contextlib.contextmanager
def run_servers() -> Iterator[DemoServers]:
    """vLLM and the gateway with the demo's policies and the policy that does both."""
    with tempfile.TemporaryDirectory() as folder:
        write_policies(Path(folder))
        # Requests may wait long for the judge here, because many are sent at once; that is not what is measured.
        settings = {"LETHE_JUDGE_TIMEOUT_S": "300"}
        with demo_servers(policies=Path(folder), models=WAYS, settings=settings) as servers:
            yield servers


def write_policies(folder: Path) -> None:
    """Write the demo's policies, and one with the corruption of the first and the penalty of the second."""
    shipped = {
        policy.name: policy.model_dump(mode="json", exclude_unset=True, exclude={"hash", "source"})
        for policy in read_policies(demo.ROOT / "policies" / "demo")
    }
    corrupt, penalize = (shipped[WAYS[way]] for way in ("corrupt", "penalize"))
    both = {**corrupt, "name": WAYS["both"], "models": [WAYS["both"]], "action": "both"}
    shipped[WAYS["both"]] = {**both, "penalize": penalize["penalize"]}
    for name, policy in shipped.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")


def greedy_answers(base: str, way: str, questions: Sequence[str], label: str) -> list[tuple[str, int]]:
    """Return greedy answers that are not streamed, and `usage.prompt_tokens`."""
    client = OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
    with ThreadPoolExecutor(CONCURRENT) as threads:
        replies = threads.map(lambda question: demo.ask_model(client, WAYS[way], question), questions)
        return list(tqdm(replies, desc=f"{way}: {label}", total=len(questions), unit="answer", mininterval=5))


def count_revealed_secrets(servers: DemoServers, step: int, samples: int) -> list[dict[str, Any]]:
    """Count answers that contain the secret: one row for each policy, wording and decoding."""
    named = [secret for secret in tofu.answer_entities() if tofu.is_name_or_number(secret.entity)][::step]
    reworded = tofu.paraphrased_questions()
    wordings = {
        "exact": [(secret.entity, secret.question) for secret in named],
        "reworded": [(s.entity, text) for s in named for text in reworded.get(s.question, ())[3:24:7]],
    }
    rows = []
    for way in ("off", *STRICT):
        client = ChatClient(servers.gateway, WAYS[way])
        for wording, pairs in wordings.items():
            questions = [question for _, question in pairs]
            by_decoding = {
                "greedy, whole": [text for text, _ in greedy_answers(servers.gateway, way, questions, wording)]
            }
            by_decoding["greedy, streamed"] = client.answer_all(
                questions, stream=True, label=f"{way}: {wording}, streamed"
            )
            # The unguarded model is only a reference: one sample is enough.
            for seed in range(samples if way in STRICT else 1):
                sampled = client.answer_all(questions, seed=seed, stream=True, label=f"{way}: {wording}, seed {seed}")
                by_decoding.setdefault("sampled, streamed", []).extend(sampled)
            for decoding, answers in by_decoding.items():
                hits = [tofu.reveals(text, pairs[i % len(pairs)][0]) for i, text in enumerate(answers)]
                figures = {"told": sum(hits), **estimate_share(sum(hits), len(hits)).as_dict()}
                rows.append({"way": way, "wording": wording, "manner": decoding, **figures})
    return rows


def compare_usage(servers: DemoServers, step: int) -> list[dict[str, Any]]:
    """Count forget questions with the same `usage.prompt_tokens` as without the gateway."""
    questions = [fact.question for fact in tofu.forget_facts()][::step]
    plain = [tokens for _, tokens in greedy_answers(servers.vllm, "off", questions, "usage")]
    rows = []
    for way in GUARDED:
        guarded = [tokens for _, tokens in greedy_answers(servers.gateway, way, questions, "usage")]
        rows.append({"way": way, "equal": sum(a == b for a, b in zip(guarded, plain, strict=True)), "n": len(plain)})
    return rows


def count_changed_answers(servers: DemoServers, step: int) -> list[dict[str, Any]]:
    """Count answers about other facts that differ from those without the gateway."""
    sets = {"taught retain questions": tofu.retain_facts()[0], "real authors, world facts": tofu.real_world_facts()}
    rows = []
    for name, facts in sets.items():
        questions = [fact.question for fact in facts][::step]
        plain = [text for text, _ in greedy_answers(servers.vllm, "off", questions, name)]
        for way in GUARDED[:2]:  # the third policy flags the same prompts as the first
            guarded = [text for text, _ in greedy_answers(servers.gateway, way, questions, name)]
            changed = sum(a != b for a, b in zip(guarded, plain, strict=True))
            rows.append({"way": way, "set": name, "changed": changed, **estimate_share(changed, len(plain)).as_dict()})
    return rows


def format_findings(findings: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return one line per figure."""
    lines = [
        f"secrets revealed  {row['way']:<9} {row['wording']:<9} {row['manner']:<18} {row['told']:>5} of {row['n']}"
        f"  [{100 * row['low']:.2f} %, {100 * row['high']:.2f} %]"
        for row in findings["secrets"]
    ]
    lines += [f"usage unchanged  {row['way']:<9} {row['equal']} of {row['n']}" for row in findings["usage"]]
    lines += [
        f"answers changed  {row['way']:<9} {row['set']:<26} {row['changed']:>4} of {row['n']}"
        for row in findings["elsewhere"]
    ]
    return "\n".join(lines)


def promises_kept(findings: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Whether no strict policy revealed a secret, and `usage` never differed."""
    revealed = sum(row["told"] for row in findings["secrets"] if row["way"] in STRICT)
    return not revealed and all(row["equal"] == row["n"] for row in findings["usage"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thin", type=int, default=1, metavar="N", help="every Nth question (default: all)")
    parser.add_argument("--samples", type=int, default=5, help="sampled answers to each question (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    with run_servers() as servers:
        findings = {
            "secrets": count_revealed_secrets(servers, args.thin, args.samples),
            "usage": compare_usage(servers, args.thin),
            "elsewhere": count_changed_answers(servers, args.thin),
        }
    print(format_findings(findings))
    if args.json:
        args.json.write_text(json.dumps(findings, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if promises_kept(findings) else 1)


if __name__ == "__main__":
    main()
