"""What clients of the demo get: secrets told, `usage` that tells of a flag, answers changed that should have stayed.

    python -m benchmarks.answers [--json FILE]

The real vLLM with the demo's model, a gateway in front with the demo's policies and one that does both. Secrets that
are names, titles, numbers or dates are asked for in the words of the forget set and in paraphrases that no fit has
met: greedy, whole and streamed, and sampled at temperature 1, streamed. `usage` is compared on every forget question.
Everything else is what the model was taught besides: an answer counts as changed if one letter differs from what vLLM
says without a guard. What the answers are worth beyond that: `lethe evaluate`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from openai import OpenAI
from tqdm import tqdm

from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.demo.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.client import Asker
from lethe.evaluation.unlearning.confidence import share
from lethe.server.policy.schema import read_all

LOGS = demo.ROOT / "build" / "benchmarks"
WAYS = {**demo.WAYS, "both": "demo-both"}
GUARDED = ("corrupt", "penalize", "both")
# May tell no secret. Corrupting is statistical: it may guess right, as a model that never knew may.
KEEPING = ("penalize", "both")
CONCURRENT = 16


@dataclass(frozen=True)
class Servers:
    gateway: str
    vllm: str


@contextlib.contextmanager
def serving() -> Iterator[Servers]:
    """vLLM and the gateway, until this is left."""
    demo.fit_artifact()
    port, vllm_port = free_port(), free_port()
    upstream = f"http://127.0.0.1:{vllm_port}"
    with contextlib.ExitStack() as stack:
        policies = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_policies(policies)
        command = vllm_command(FOLDERS["full"], vllm_port, list(WAYS.values()))
        stack.enter_context(running("vLLM", command, f"{upstream}/health", LOGS / "vllm.log", env=VLLM_ENV))
        env = demo.gateway_env(port, vllm_port, policies, LOGS / "audit.jsonl")
        # A line of judging that is long because many ask at once is not what is measured.
        env |= {"LETHE_JUDGE_TIMEOUT_S": "300"}
        stack.enter_context(running_gateway(LOGS / "gateway.log", env=env))
        yield Servers(f"http://127.0.0.1:{port}", upstream)


def write_policies(folder: Path) -> None:
    """The demo's policies, and one with the corruption of the first and the penalty of the second."""
    shipped = {
        policy.name: policy.model_dump(mode="json", exclude_unset=True, exclude={"hash", "source"})
        for policy in read_all(demo.ROOT / "policies" / "demo")
    }
    corrupt, penalize = (shipped[WAYS[way]] for way in ("corrupt", "penalize"))
    both = {**corrupt, "name": WAYS["both"], "models": [WAYS["both"]], "action": "both"}
    shipped[WAYS["both"]] = {**both, "penalize": penalize["penalize"]}
    for name, policy in shipped.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")


def whole(base: str, way: str, questions: Sequence[str], label: str) -> list[tuple[str, int]]:
    """Greedy answers, not streamed, and `usage.prompt_tokens`."""
    client = OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
    with ThreadPoolExecutor(CONCURRENT) as threads:
        asked = threads.map(lambda question: demo.ask(client, WAYS[way], question), questions)
        return list(tqdm(asked, desc=f"{way}: {label}", total=len(questions), unit="answer", mininterval=5))


def secrets(servers: Servers, step: int, samples: int) -> list[dict[str, Any]]:
    """How often a named secret is told: one row for each way, wording and manner of asking."""
    named = [secret for secret in tofu.secrets() if tofu.is_named(secret.entity)][::step]
    reworded = tofu.paraphrases()
    wordings = {
        "exact": [(secret.entity, secret.question) for secret in named],
        "reworded": [(s.entity, text) for s in named for text in reworded.get(s.question, ())[3:24:7]],
    }
    rows = []
    for way in ("off", *KEEPING):
        asker = Asker(servers.gateway, WAYS[way])
        for wording, pairs in wordings.items():
            questions = [question for _, question in pairs]
            made = {"greedy, whole": [text for text, _ in whole(servers.gateway, way, questions, wording)]}
            made["greedy, streamed"] = asker.all(questions, stream=True, label=f"{way}: {wording}, streamed")
            # What the unguarded model says is for comparison; one seed says enough.
            for seed in range(samples if way in KEEPING else 1):
                drawn = asker.all(questions, seed=seed, stream=True, label=f"{way}: {wording}, seed {seed}")
                made.setdefault("sampled, streamed", []).extend(drawn)
            for manner, answers in made.items():
                hits = [tofu.holds(text, pairs[i % len(pairs)][0]) for i, text in enumerate(answers)]
                found = {"told": sum(hits), **share(sum(hits), len(hits)).as_dict()}
                rows.append({"way": way, "wording": wording, "manner": manner, **found})
    return rows


def usage(servers: Servers, step: int) -> list[dict[str, Any]]:
    """On how many forget questions `usage.prompt_tokens` is what it is without a guard."""
    questions = [fact.question for fact in tofu.forget_facts()][::step]
    plain = [tokens for _, tokens in whole(servers.vllm, "off", questions, "usage")]
    rows = []
    for way in GUARDED:
        got = [tokens for _, tokens in whole(servers.gateway, way, questions, "usage")]
        rows.append({"way": way, "equal": sum(a == b for a, b in zip(got, plain, strict=True)), "n": len(plain)})
    return rows


def elsewhere(servers: Servers, step: int) -> list[dict[str, Any]]:
    """How many answers to what is not forgotten differ from those without a guard."""
    asked = {"taught retain questions": tofu.retain_facts()[0], "real authors, world facts": tofu.real_world_facts()}
    rows = []
    for name, facts in asked.items():
        questions = [fact.question for fact in facts][::step]
        plain = [text for text, _ in whole(servers.vllm, "off", questions, name)]
        for way in GUARDED[:2]:  # the third flags what the first flags
            got = [text for text, _ in whole(servers.gateway, way, questions, name)]
            changed = sum(a != b for a, b in zip(got, plain, strict=True))
            rows.append({"way": way, "set": name, "changed": changed, **share(changed, len(plain)).as_dict()})
    return rows


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One line a figure."""
    lines = [
        f"named secrets told  {row['way']:<9} {row['wording']:<9} {row['manner']:<18} {row['told']:>5} of {row['n']}"
        f"  [{100 * row['low']:.2f} %, {100 * row['high']:.2f} %]"
        for row in found["secrets"]
    ]
    lines += [f"usage as without a guard  {row['way']:<9} {row['equal']} of {row['n']}" for row in found["usage"]]
    lines += [
        f"answers changed  {row['way']:<9} {row['set']:<26} {row['changed']:>4} of {row['n']}"
        for row in found["elsewhere"]
    ]
    return "\n".join(lines)


def kept(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Whether no way that promises to has told a secret, and `usage` never told of a flag."""
    told = sum(row["told"] for row in found["secrets"] if row["way"] in KEEPING)
    return not told and all(row["equal"] == row["n"] for row in found["usage"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thin", type=int, default=1, metavar="N", help="every Nth question (default: all)")
    parser.add_argument("--samples", type=int, default=5, help="answers drawn to each question (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    with serving() as servers:
        found = {
            "secrets": secrets(servers, args.thin, args.samples),
            "usage": usage(servers, args.thin),
            "elsewhere": elsewhere(servers, args.thin),
        }
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if kept(found) else 1)


if __name__ == "__main__":
    main()
