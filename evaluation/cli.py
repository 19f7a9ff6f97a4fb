"""The commands that this package adds to `lethe`: evaluate, report, tune, attack.

Imports nothing heavy, since `lethe serve` reads this module too; a command imports its own code when it runs. Knows the
arguments only.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lethe.server.settings import Settings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


class MissingExtraError(ValueError):
    """A command needs packages that only the extra `evaluate` installs."""


def add(commands: Commands) -> None:
    """Add every command of this package to the parser of `lethe`."""
    _add_evaluate(commands)
    _add_report(commands)
    _add_tune(commands)
    _add_attack(commands)


def require_packages(command: str, *modules: str) -> None:
    """Raise MissingExtraError if one of the modules, which the extra `evaluate` installs, can't be found."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise MissingExtraError(
            f"lethe {command} needs the package {missing[0]!r}: pip install 'lethe-gateway[evaluate]'"
        )


def _add_evaluate(commands: Commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="measure what a policy makes the model forget, and what it costs",
        description="Measure a policy in front of a running vLLM: what the model still knows, what leaks, how fluent "
        "its answers are, and what other questions lose. The same is measured for other systems: the unguarded model, "
        "a retain twin, a fixed refusal, a system prompt, and other policy actions. This command starts a gateway for "
        "each guarded system. Probabilities of fixed answers are computed from LETHE_MODEL_DIR; without it, the "
        "metrics that need them are left out. Definitions: docs/evaluation.md.",
    )
    command.add_argument("policy", metavar="POLICY", help="name of a policy in LETHE_POLICIES, or a policy file")
    command.add_argument("--upstream", metavar="URL", help="vLLM's base URL (default: LETHE_UPSTREAM)")
    command.add_argument("--model", metavar="NAME", help="name of the served model (default: the first one served)")
    command.add_argument(
        "--retain-model", type=Path, metavar="DIR", help="folder of a model that never saw the forget set"
    )
    command.add_argument(
        "--suite",
        choices=["tofu", "own"],
        help="questions: TOFU's files, or the artifact's items only (default: tofu if all items are from forget10)",
    )
    command.add_argument(
        "--retain", type=Path, metavar="FILE", help="JSON lines of prompt and answer whose answers must stay"
    )
    command.add_argument(
        "--perturbed", type=Path, metavar="FILE", help="paraphrased and wrong answers, in TOFU's format"
    )
    command.add_argument("--systems", metavar="A,B", help="systems to compare (default: all that the set-up allows)")
    command.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the sampled answers (default: 0 1 2)"
    )
    command.add_argument(
        "--samples", type=int, default=5, help="number of seeds for systems that penalize (default: 5)"
    )
    command.add_argument(
        "--rewordings", type=int, default=5, help="rewordings of each forget question to judge (default: 5)"
    )
    command.add_argument(
        "--sequential", type=int, metavar="N", help="also split the artifact's items into N successive forget requests"
    )
    command.add_argument("--quick", action="store_true", help="use a tenth of every set")
    command.add_argument("--thin", type=int, metavar="N", help="use one row in N of every set")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a report page to this file")
    command.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="folder of finished results, from which an interrupted run continues (default: under build/evaluate)",
    )
    command.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace, settings: Settings) -> int:
    require_packages("evaluate", "torch", "transformers", "rouge_score", "openai", "scipy")
    if args.html:
        require_packages("evaluate --html", "matplotlib")
    from lethe.evaluation.unlearning.run import run_evaluate_command

    return run_evaluate_command(args, settings)


def _add_report(commands: Commands) -> None:
    reports = commands.add_parser("report", help="write a report from measured figures").add_subparsers(
        dest="report", required=True, metavar="REPORT"
    )
    command = reports.add_parser("html", help="write one HTML page", description=_report_html.__doc__)
    command.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE.json",
        help="files that `evaluate`, `attack` or `tune` wrote with --json, all about one policy",
    )
    command.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="default: next to the first file")
    command.set_defaults(run=_report_html)


def _report_html(args: argparse.Namespace, settings: object) -> int:
    """Write an evaluation as one self-contained HTML page with plots, tables, examples and its numbers as JSON."""
    require_packages("report html", "matplotlib")
    from lethe.evaluation.reporting.report import write_page

    print(write_page(args.files, args.output or args.files[0].with_suffix(".html")))
    return 0


def _add_tune(commands: Commands) -> None:
    command = commands.add_parser(
        "tune",
        help="choose a policy's strength by measuring the live model",
        description="Choose sigma, dims, strength, soft or similarity of a policy by trying candidates on the live "
        "vLLM, through its public API only. The chosen values and the evidence for them are written into the policy's "
        "artifact, where a policy that says `tuned` reads them. Half of the forget prompts are tuned on; the result is "
        "measured on the other half. An interrupted run continues where it stopped.",
    )
    command.add_argument("policy", help="name of a policy in LETHE_POLICIES, or a policy file")
    command.add_argument("--upstream", help="vLLM's base URL (default: LETHE_UPSTREAM)")
    command.add_argument("--model", help="name of the served model (default: the policy's first, or vLLM's first)")
    command.add_argument(
        "--retain-model-url", help="base URL of a vLLM that serves a model which never saw the forget set"
    )
    command.add_argument(
        "--surrogate",
        choices=("dont-know", "other-answers"),
        default="dont-know",
        help="what replaces a retain model: \"I don't know\" sentences (ECO's paper, default), or the answers of other "
        "forget items",
    )
    command.add_argument(
        "--parameter",
        action="append",
        metavar="NAME[,NAME...]",
        help="parameters to tune, one after another: sigma, dims, strength, soft, similarity (default: those that the "
        "policy sets to `tuned`, else all that its function has)",
    )
    command.add_argument("--budget", type=int, default=20, help="maximum number of evaluations (default and limit 20)")
    command.add_argument("--prompts", type=int, default=60, help="maximum forget prompts in each half (default 60)")
    command.add_argument("--max-tokens", type=int, default=128, help="maximum tokens of an answer (default 128)")
    command.add_argument("--seed", type=int, default=0, help="seed of the split into halves (default 0)")
    command.add_argument(
        "--grid",
        type=int,
        metavar="POINTS",
        help="afterwards evaluate an even grid of POINTS candidates on the same prompts; exit status 1 if the grid's "
        "best objective is lower by more than 10 %%",
    )
    command.add_argument("--json", type=Path, help="also write the evidence to this file")
    command.set_defaults(run=_tune)


def _tune(args: argparse.Namespace, settings: Settings) -> int:
    require_packages("tune", "rouge_score", "matplotlib", "scipy")
    from lethe.evaluation.tuning.tune import run_tune_command

    return run_tune_command(args, settings)


def _add_attack(commands: Commands) -> None:
    command = commands.add_parser(
        "attack",
        help="attack a policy's detector; usable as a CI check",
        description="Attack a policy's detector with its own forget prompts in every known disguise, and with other "
        "prompts in the same disguises. Print the recall and the false alarms of each family of attacks, with Wilson "
        "95 % intervals. Prompts are judged as the gateway judges them; no model answers. Exit status 1 if a family "
        "misses --min-recall or --max-false-alarms.",
    )
    command.add_argument("policy", metavar="POLICY", help="name of a policy in LETHE_POLICIES, or a policy file")
    command.add_argument(
        "--min-recall", type=_share_argument, default=0.98, metavar="SHARE", help="of each family (default 0.98)"
    )
    command.add_argument(
        "--max-false-alarms", type=_share_argument, default=0.02, metavar="SHARE", help="of each family (default 0.02)"
    )
    command.add_argument("--families", metavar="A,B", help="families to run; patterns such as 'split-*' work too")
    command.add_argument("--list", action="store_true", help="list the families and exit")
    command.add_argument(
        "--sample",
        type=_count_argument,
        default=100,
        metavar="N",
        help="prompts of each kind (default 100); families of long requests use a fifth or a twentieth of them",
    )
    command.add_argument("--full", action="store_true", help="families of long requests use the whole sample too")
    command.add_argument("--seed", type=int, default=0, help="seed of the sample and the attacks (default 0)")
    command.add_argument(
        "--forget", type=Path, metavar="FILE", help="JSON lines that must be flagged (default: the artifact's items)"
    )
    command.add_argument(
        "--retain",
        type=Path,
        metavar="FILE",
        help="JSON lines that must pass (default: the shipped background prompts, which every fit has seen)",
    )
    command.add_argument(
        "--wrappers",
        type=Path,
        metavar="DIR",
        help="folder of jailbreak wrappers: .json lists of strings, .csv files with a column text (default: the "
        "shipped ones)",
    )
    command.add_argument(
        "--filler",
        type=Path,
        metavar="FILE",
        help="ordinary text to hide prompts in, one paragraph per line (default: the shipped background prompts)",
    )
    command.add_argument(
        "--budget", type=_count_argument, default=60, metavar="N", help="queries of one search (default 60)"
    )
    command.add_argument(
        "--jobs", type=_count_argument, metavar="N", help="requests judged concurrently (default: all cores)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    command.add_argument(
        "--report-misses",
        type=_count_argument,
        default=0,
        metavar="N",
        help="print N missed examples of each family; these are real prompts",
    )
    command.add_argument("--encoder", help="sentence-transformers name or folder")
    command.set_defaults(run=_attack)


def _attack(args: argparse.Namespace, settings: Settings) -> int:
    require_packages("attack", "scipy")
    from lethe.evaluation.attacks.attack import run_attack_command

    return run_attack_command(args, settings)


def _share_argument(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _count_argument(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value
