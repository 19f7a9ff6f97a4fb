"""`lethe fit`: create an artifact from files, or add and remove items of one."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lethe.classifier import artifact_io, records
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.folders import DEFAULT_ENCODER
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.records import Record
from lethe.classifier.training import incremental
from lethe.classifier.training.stages import Progress, ProgressLines
from lethe.server.policy.schema import check_name
from lethe.server.settings import Settings, SettingsError
from lethe.server.upstream.verbatim_index import save_with_index

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(commands: Commands) -> None:
    """Add `lethe fit`."""
    command = commands.add_parser(
        "fit", help="create an artifact from a forget file, or change one", description=fit_artifact.__doc__
    )
    command.add_argument("--name", required=True, help="name of the artifact (a folder under LETHE_ARTIFACTS)")
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "--forget", type=Path, metavar="FILE",
        help='fit to these JSON lines: {"prompt": …, "answer": …} for facts, {"text": …} for documents; each may also '
        'say "subject" (a name or a list of names), "kind" and "scope" ("subject" or "facts")',
    )  # fmt: skip
    source.add_argument(
        "--add", type=Path, metavar="FILE", help="add these rows to the artifact without a new fit (about a second)"
    )
    source.add_argument(
        "--remove", metavar="ITEMS",
        help="remove items from the artifact: a file of their rows, or numbers as printed by `lethe judge` (7 or "
        "3,17-20)",
    )  # fmt: skip
    command.add_argument(
        "--retain",
        type=Path,
        metavar="FILE",
        help="JSON lines of requests that must not be flagged (optional), in the form of --forget",
    )
    command.add_argument(
        "--subject", metavar="NAME",
        help="name of whom or what the rows are about, for rows without a `subject`; without --forget, the artifact is "
        "made of this name alone",
    )  # fmt: skip
    command.add_argument(
        "--alias", action="append", default=[], metavar="NAME", help="another name of the subject (may be repeated)"
    )
    command.add_argument(
        "--scope", choices=records.SCOPES,
        help="what is to be forgotten, for rows without a `scope`: whatever asks about the subject (default), or only "
        "what the rows say",
    )  # fmt: skip
    command.add_argument("--out", type=Path, metavar="DIR", help="folder to write into (default: LETHE_ARTIFACTS)")
    command.add_argument(
        "--encoder", metavar="NAME",
        help="name or folder of a sentence-transformers model (default: LETHE_ENCODER, else all-MiniLM-L6-v2)",
    )  # fmt: skip
    command.add_argument(
        "--encoder-finetune", nargs="?", const="roberta-base", metavar="MODEL",
        help="first fine-tune this transformers encoder (folder or hub name, default roberta-base) on the files, as "
        "ECO's authors did; needs a GPU in practice. The result is written to NAME.encoder beside the artifact; serve "
        "with LETHE_ENCODER set to it. All artifacts of one gateway use one encoder",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the data splits (default: 0)")
    command.add_argument("--force", action="store_true", help="replace an existing artifact of that name")
    command.set_defaults(run=fit_artifact)


def fit_artifact(args: argparse.Namespace, settings: Settings) -> int:
    """Create an artifact by learning from files what is to be forgotten (--forget), or add items to an artifact (--add)
    or remove items from it (--remove). Adding an item and removing it again restores all scores exactly."""
    if args.add is not None or args.remove is not None:
        return _change_artifact(args, settings)
    if args.forget is None and not args.subject:
        raise SettingsError("one of --forget, --add, --remove and --subject is needed")
    if args.alias and not args.subject:
        raise SettingsError("--alias needs --subject")
    try:
        from lethe.classifier.training.fit import fit
        from lethe.classifier.training.subjects import describe_subjects
    except ImportError as error:
        raise SettingsError(f"fitting needs more packages: pip install 'lethe-gateway[fit]' ({error})") from error
    try:
        check_name(args.name)
    except ValueError as error:
        raise SettingsError(f"--name {args.name!r}: {error}") from None
    names = [args.subject, *args.alias] if args.subject else []
    forget = records.read_records(args.forget) if args.forget else _rows_about(names)
    retain = records.read_records(args.retain) if args.retain else None
    folder = (args.out or settings.artifacts) / args.name
    if folder.exists() and not args.force:
        raise SettingsError(f"{folder} exists; use --force to replace it")
    with ProgressLines(sys.stderr) as progress:
        if args.encoder_finetune:
            encoder = _finetune(args, forget, retain, folder.with_name(f"{args.name}.encoder"), progress)
        else:
            encoder = _load_encoder(args, settings)
        artifact = fit(
            forget, retain, encoder=encoder, seed=args.seed, progress=progress, names=names, scope=args.scope
        )
    # Locked, because a simultaneous change of the existing artifact would write the old one back.
    with artifact_io.artifact_lock(folder):
        index = save_with_index(artifact, folder)
    print(artifact.manifest.summary)
    print("understood (correct with --subject, --alias and --scope, or in the rows):")
    print("\n".join(f"  {line}" for line in describe_subjects(artifact.subjects)))
    print(f"written to {folder}" + (f", with the index {index.name} for vLLM (LETHE_VERBATIM)" if index else ""))
    return 0


def _rows_about(names: list[str]) -> list[Record]:
    """The rows for a subject of which only names are given."""
    questions = ("Who or what is {}?", "Tell me about {}.", "What do you know about {}?")
    return [{"prompt": question.format(name)} for name in names for question in questions]


def _load_encoder(args: argparse.Namespace, settings: Settings) -> Encoder:
    return load_encoder(args.encoder or settings.encoder or DEFAULT_ENCODER, threads=os.cpu_count() or 1)


def _finetune(
    args: argparse.Namespace, forget: list[Record], retain: list[Record] | None, target: Path, progress: Progress
) -> Encoder:
    try:
        from lethe.classifier.training.finetune import finetune
    except ImportError as error:
        raise SettingsError(
            f"--encoder-finetune needs more packages: pip install 'lethe-gateway[fit]' ({error})"
        ) from error
    if target.exists() and args.force:
        shutil.rmtree(target)
    encoder = finetune(forget, retain, model=args.encoder_finetune, target=target, seed=args.seed, progress=progress)
    print(f"trained {target}; serve with LETHE_ENCODER={target}")
    return encoder


def _change_artifact(args: argparse.Namespace, settings: Settings) -> int:
    if args.retain or args.force or args.encoder_finetune or args.subject or args.alias or args.scope:
        raise SettingsError(
            "--retain, --force, --encoder-finetune, --subject, --alias and --scope are for a new fit: --add and "
            "--remove keep what the artifact was fitted to, and added rows name their subject themselves"
        )
    folder = (args.out or settings.artifacts) / args.name
    with artifact_io.edit_artifact(folder) as before:
        option, value = ("--add", args.add) if args.add is not None else ("--remove", args.remove)
        rows = records.read_records(args.add) if args.add is not None else []
        try:
            if args.add is not None:
                after = incremental.add_items(before, rows, _load_encoder(args, settings))
            else:
                after = incremental.remove_items(before, _item_numbers(args.remove, before))
        except ValueError as error:
            raise ValueError(f"{option} {value}: {error}") from None
        save_with_index(after, folder)
    for change in after.manifest.changes[len(before.manifest.changes) :]:
        print(f"{change['change']}: items {', '.join(map(str, change['items']))}")
    print(f"{len(after.live_items)} items are to be forgotten; written to {folder}")
    return 0


def _item_numbers(text: str, artifact: Artifact) -> list[int]:
    """Item numbers from "3,17-20", or from a file of forget rows. Raises ValueError."""
    if not re.fullmatch(r"[\d,\s-]+", text):
        return incremental.item_numbers(artifact, records.read_records(text))
    numbers: list[int] = []
    last = len(artifact.items) - 1
    for part in text.split(","):
        bounds = [int(number) for number in part.split("-")] if re.fullmatch(r"\s*\d+(-\d+)?\s*", part) else []
        if not bounds or bounds[0] > bounds[-1] or bounds[-1] > last:
            raise ValueError(f"{part.strip()!r} is not an item number or range; the last item is {last}")
        numbers += range(bounds[0], bounds[-1] + 1)
    return numbers
