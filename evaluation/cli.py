"""The commands that `lethe` gains from this package. Imports nothing heavy: `lethe serve` reads this too."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lethe.server.settings import Settings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Register every command of this package on the parser of `lethe`."""
    _add_evaluate(commands)
    reports = commands.add_parser("report", help="reports for people, from measured numbers").add_subparsers(
        dest="report", required=True, metavar="REPORT"
    )
    command = reports.add_parser("html", help="one page from an evaluation", description=_report_html.__doc__)
    command.add_argument(
        "files", type=Path, nargs="+", metavar="FILE.json",
        help="what `lethe evaluate --json` wrote; what `attack` and `tune` wrote about the same policy joins it",
    )  # fmt: skip
    command.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="default: beside the first file")
    command.set_defaults(run=_report_html)
    _add_tune(commands)
    _add_attack(commands)


def _add_evaluate(commands: Commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="measure what a policy makes the model forget, and what it costs",
        description="Measure a policy in front of a running vLLM: what is forgotten, what leaks, how it reads, what "
        "everything else costs; beside the unguarded model, a retain twin, a refusal, a system prompt and other ways "
        "of guarding. Guarded ways are asked through gateways that this command starts. Probabilities of fixed answers "
        "are computed from LETHE_MODEL_DIR; without it those metrics are left out. Definitions: docs/EVALUATION.md.",
    )
    command.add_argument("policy", metavar="POLICY", help="a policy's name in LETHE_POLICIES, or a policy file")
    command.add_argument("--upstream", metavar="URL", help="vLLM (default: LETHE_UPSTREAM)")
    command.add_argument("--model", metavar="NAME", help="the served model's name (default: the first one served)")
    command.add_argument("--retain-model", type=Path, metavar="DIR", help="a model that never knew what is forgotten")
    command.add_argument("--suite", choices=["tofu", "own"], help="TOFU's files, or the artifact's items alone "
                         "(default: tofu where the artifact was fitted to forget10)")  # fmt: skip
    command.add_argument("--retain", type=Path, metavar="FILE", help="JSON lines of prompt and answer that must stay")
    command.add_argument("--perturbed", type=Path, metavar="FILE", help="reworded and wrong answers, in TOFU's format")
    command.add_argument("--ways", metavar="A,B", help="these ways only (default: all that the set-up allows)")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="sampled runs (default: 0 1 2)")
    command.add_argument("--samples", type=int, default=5, help="sampled runs of ways that penalize (default: 5)")
    command.add_argument("--rewordings", type=int, default=5, help="rewordings judged for each question (default: 5)")
    command.add_argument("--sequential", type=int, metavar="N", help="also forget the artifact's items in N requests, "
                         "one after another")  # fmt: skip
    command.add_argument("--quick", action="store_true", help="a tenth of every set")
    command.add_argument("--thin", type=int, metavar="N", help="every Nth row of every set")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page for people here")
    command.add_argument("--work", type=Path, metavar="DIR", help="where finished pieces are kept, and found again "
                         "(default: under build/evaluate)")  # fmt: skip
    command.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace, settings: Settings) -> int:
    from lethe.evaluation.unlearning.run import run

    return run(args, settings)


def _report_html(args: argparse.Namespace, settings: object) -> int:
    """Write an evaluation as one self-contained HTML page: plots, tables, examples, and its numbers as JSON."""
    from lethe.evaluation.reporting.report import write

    print(write(args.files, args.output or args.files[0].with_suffix(".html")))
    return 0


def _add_tune(commands: Commands) -> None:
    command = commands.add_parser(
        "tune",
        help="choose a policy's strength against the live model",
        description="Choose sigma, dims, strength, soft or similarity of a policy by trying candidates on the live "
        "vLLM, through its public API only, and write the choice with its evidence into the policy's artifact, where "
        "the policy finds it when it says `tuned`. Half of the forget prompts are tuned on; the result is measured on "
        "the other half. An interrupted run goes on where it was.",
    )
    command.add_argument("policy", help="a policy's name in LETHE_POLICIES, or a policy file")
    command.add_argument("--upstream", help="vLLM's base URL (default: LETHE_UPSTREAM)")
    command.add_argument("--model", help="the served model's name (default: the policy's first, or vLLM's first)")
    command.add_argument("--retain-model-url", help="base URL of a vLLM that serves a model which never knew")
    command.add_argument(
        "--surrogate",
        choices=("dont-know", "other-answers"),
        default="dont-know",
        help="without a retain model, what stands for one: sentences that say so (the paper's, default), or the "
        "answers of other forget items",
    )
    command.add_argument(
        "--parameter",
        action="append",
        metavar="NAME[,NAME...]",
        help="what to tune, one after another: sigma, dims, strength, soft, similarity (default: what the policy calls "
        "tuned, else what its function has)",
    )
    command.add_argument("--budget", type=int, default=20, help="evaluations at most (default and limit 20)")
    command.add_argument("--prompts", type=int, default=60, help="forget prompts in each half, at most (default 60)")
    command.add_argument("--max-tokens", type=int, default=128, help="longest answer (default 128)")
    command.add_argument("--seed", type=int, default=0, help="seed of the split (default 0)")
    command.add_argument(
        "--grid",
        type=int,
        metavar="POINTS",
        help="afterwards try an even grid of POINTS candidates on the same prompts and compare; exit status 1 when its "
        "best is lower by more than 10 %%",
    )
    command.add_argument("--json", type=Path, help="write the evidence here as well")
    command.set_defaults(run=_tune)


def _tune(args: argparse.Namespace, settings: Settings) -> int:
    from lethe.evaluation.tuning.tune import run

    return run(args, settings)


def _add_attack(commands: Commands) -> None:
    command = commands.add_parser(
        "attack",
        help="attack a policy's detector; a gate for CI",
        description="Attack a policy's detector with its own forget prompts in every known disguise, and with other "
        "prompts disguised alike; print what is caught and what is flagged by mistake, with Wilson 95 % intervals. "
        "Judged as the gateway judges; no model answers. Exit status 1 when a family falls short of --floor or "
        "--most-false-alarms.",
    )
    command.add_argument("policy", metavar="POLICY", help="a policy's name in LETHE_POLICIES, or a policy file")
    command.add_argument("--floor", type=_share, default=0.98, help="least recall of each family (default 0.98)")
    command.add_argument(
        "--most-false-alarms", type=_share, default=0.02, metavar="SHARE", help="of each family (default 0.02)"
    )
    command.add_argument("--families", metavar="A,B", help="these only; patterns such as 'split-*' too")
    command.add_argument("--list", action="store_true", help="list the families and stop")
    command.add_argument(
        "--sample", type=_count, default=100, metavar="N", help="prompts of each kind (default 100); families of long "
        "requests take a fifth or a twentieth of them"
    )  # fmt: skip
    command.add_argument("--full", action="store_true", help="families of long requests take the whole sample too")
    command.add_argument("--seed", type=int, default=0, help="seed of sample and attacks (default 0)")
    command.add_argument(
        "--forget", type=Path, metavar="FILE", help="JSON lines that must be flagged (default: the artifact's items)"
    )
    command.add_argument(
        "--retain", type=Path, metavar="FILE", help="JSON lines that must pass (default: the shipped background "
        "prompts, which every fit has seen)"
    )  # fmt: skip
    command.add_argument("--wrappers", type=Path, metavar="DIR", help="folder of jailbreak wrappers: .json lists of "
                         "strings, .csv with a column text (default: those shipped)")  # fmt: skip
    command.add_argument("--filler", type=Path, metavar="FILE", help="ordinary text to bury prompts in, a paragraph a "
                         "line (default: the shipped background prompts)")  # fmt: skip
    command.add_argument(
        "--budget", type=_count, default=60, metavar="N", help="questions of a suffix search (default 60)"
    )
    command.add_argument("--jobs", type=_count, metavar="N", help="requests judged at a time (default: all cores)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    command.add_argument("--report-misses", type=_count, default=0, metavar="N", help="show N examples a family "
                         "of what got through; these are real prompts")  # fmt: skip
    command.add_argument("--encoder", help="sentence-transformers name or folder")
    command.set_defaults(run=_attack)


def _attack(args: argparse.Namespace, settings: Settings) -> int:
    from lethe.evaluation.attacks.attack import run_attack_command

    return run_attack_command(args, settings)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value
