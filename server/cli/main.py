"""The command `lethe`: serve, fit, judge, keys, doctor."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from lethe.classifier import artifact as artifacts_io
from lethe.classifier import records
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import DEFAULT_ENCODER, Encoder, load_encoder
from lethe.classifier.records import Record
from lethe.classifier.training import incremental
from lethe.server.cli import policies as policy_commands
from lethe.server.errors import BadRequest
from lethe.server.guard.guard import Guard
from lethe.server.http import api_keys
from lethe.server.http.api_keys import KeysError
from lethe.server.observability import malloc
from lethe.server.policy.schema import Policy, checked_name, read_all
from lethe.server.policy_store.load import find_policy, load_judging
from lethe.server.process import sockets
from lethe.server.settings import Settings, SettingsError, check_exposure
from lethe.server.settings import read as read_settings
from lethe.server.upstream.verbatim_index import save as save_artifact


def serve(args: argparse.Namespace, settings: Settings) -> int:
    """Run the gateway until SIGINT or SIGTERM."""
    check_exposure(settings)
    _allow_open_files()
    sockets.bound(settings.host, settings.port, "LETHE_PORT").close()
    if settings.admin_address is not None:
        sockets.bound(*settings.admin_address, "LETHE_ADMIN_PORT").close()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.workers > 1:
        from lethe.server.process import supervisor

        return supervisor.run(settings)
    import uvicorn

    from lethe.server.app import create_app
    from lethe.server.http.connection_limits import uvicorn_options

    malloc.keep_little()
    app = create_app(settings)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        log_config=None,
        timeout_graceful_shutdown=settings.drain_timeout_s,
        **uvicorn_options(settings, app.state.metrics),
    )
    return 0


def _allow_open_files() -> None:
    """Each request needs a connection of the client's and one to vLLM; many systems start with 1,024 files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def make_key(args: argparse.Namespace, settings: Settings) -> int:
    """Make a key and print it, this once: only its hash is kept."""
    fields = ("name", "policies", "exempt", "models", "requests_per_minute", "concurrency", "debug")
    given = {field: getattr(args, field) for field in fields}
    known = [policy.name for policy in read_all(settings.policies)] if args.policies or args.exempt else []
    for name in (*(args.policies or ()), *(args.exempt or ())):
        if name not in known:
            there = ", ".join(known) or "none"
            raise KeysError(f"there is no policy {name!r} in {settings.policies} (there: {there})")
    print(
        api_keys.make(
            _key_file(args, settings), **{field: value for field, value in given.items() if value is not None}
        )
    )
    return 0


def list_keys(args: argparse.Namespace, settings: Settings) -> int:
    """Print one JSON line a key: what it may do, and the beginning of its hash."""
    for key in api_keys.read(_key_file(args, settings)):
        shown = key.model_dump(mode="json", exclude_defaults=True)
        print(json.dumps({**shown, "sha256": key.sha256[:12]}))
    return 0


def revoke_key(args: argparse.Namespace, settings: Settings) -> int:
    """Take a key out of the file; a running gateway turns it away within a second."""
    api_keys.revoke(_key_file(args, settings), args.name)
    return 0


def _key_file(args: argparse.Namespace, settings: Settings) -> Path:
    path: Path | None = args.file or settings.keys
    if path is None:
        raise SettingsError("which key file? Set LETHE_KEYS, or give --file")
    return path


def fit_artifact(args: argparse.Namespace, settings: Settings) -> int:
    """Learn what is to be forgotten from files, or add items to an artifact that is there (--add), or take items
    out of it (--remove). An item that was added and taken out again leaves all scores as they were, to the bit."""
    if args.forget is None:
        return _change_artifact(args, settings)
    try:
        from lethe.classifier.training.fit import fit
    except ImportError as error:
        raise SettingsError(f"fitting needs more: pip install 'lethe-gateway[fit]' ({error})") from error
    try:
        checked_name(args.name)
    except ValueError as error:
        raise SettingsError(f"--name {args.name!r}: {error}") from None
    forget = records.read(args.forget)
    retain = records.read(args.retain) if args.retain else None
    folder = (args.out or settings.artifacts) / args.name
    if folder.exists() and not args.force:
        raise SettingsError(f"{folder} exists; --force replaces it")
    with _Progress() as progress:
        if args.encoder_finetune:
            encoder = _finetuned(args, forget, retain, folder.with_name(f"{args.name}.encoder"), progress)
        else:
            encoder = load_encoder(args.encoder or settings.encoder or DEFAULT_ENCODER, threads=os.cpu_count() or 1)
        made = fit(forget, retain, encoder=encoder, seed=args.seed, progress=progress)
    # A change of the artifact that was there, made at the same time, would write the old one back.
    with artifacts_io.locked(folder):
        index = save_artifact(made, folder)
    print(made.manifest.summary)
    print(f"written to {folder}" + (f", with the index {index.name} for vLLM (LETHE_VERBATIM)" if index else ""))
    return 0


def _finetuned(
    args: argparse.Namespace,
    forget: list[Record],
    retain: list[Record] | None,
    target: Path,
    progress: Callable[[str, int, int], None],
) -> Encoder:
    try:
        from lethe.classifier.training.finetune import finetune
    except ImportError as error:
        raise SettingsError(f"--encoder-finetune needs more: pip install 'lethe-gateway[fit]' ({error})") from error
    if target.exists() and args.force:
        shutil.rmtree(target)
    made = finetune(forget, retain, model=args.encoder_finetune, target=target, seed=args.seed, progress=progress)
    print(f"trained {target}; serve with LETHE_ENCODER={target}")
    return made


def _change_artifact(args: argparse.Namespace, settings: Settings) -> int:
    if args.retain or args.force or args.encoder_finetune:
        raise SettingsError(
            "--retain, --force and --encoder-finetune go with --forget: a change keeps what the artifact was fitted on"
        )
    folder = (args.out or settings.artifacts) / args.name
    with artifacts_io.editing(folder) as before:
        if args.add is not None:
            rows = records.read(args.add)
            encoder = load_encoder(args.encoder or settings.encoder or DEFAULT_ENCODER, threads=os.cpu_count() or 1)
            try:
                made = incremental.add(before, rows, encoder)
            except ValueError as error:
                raise ValueError(f"--add {args.add}: {error}") from None
        else:
            try:
                made = incremental.remove(before, _item_numbers(args.remove, before))
            except ValueError as error:
                raise ValueError(f"--remove {args.remove}: {error}") from None
        save_artifact(made, folder)
    for change in made.manifest.changes[len(before.manifest.changes) :]:
        print(f"{change['change']}: items {', '.join(map(str, change['items']))}")
    print(f"{len(made.live)} items are to be forgotten; written to {folder}")
    return 0


def _item_numbers(given: str, artifact: Artifact) -> list[int]:
    """Item numbers from "3,17-20", or from a file of forget rows."""
    if not re.fullmatch(r"[\d,\s-]+", given):
        return incremental.numbers(artifact, records.read(given))
    found: list[int] = []
    for part in given.split(","):
        ends = [int(number) for number in part.split("-")] if re.fullmatch(r"\s*\d+(-\d+)?\s*", part) else []
        if not ends or ends[0] > ends[-1] or ends[-1] >= len(artifact.items):
            raise ValueError(f"{part.strip()!r} is no item number or range; the last item is {len(artifact.items) - 1}")
        found += range(ends[0], ends[-1] + 1)
    return found


class _Progress:
    """One bar a stage, on standard error."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] = tqdm(disable=True)
        self._stage = ""

    def __enter__(self) -> Callable[[str, int, int], None]:
        return self._step

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _step(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._bar.close()
            self._stage, self._bar = stage, tqdm(total=total, desc=stage, file=sys.stderr)
        self._bar.update(done - self._bar.n)


def judge_file(args: argparse.Namespace, settings: Settings) -> int:
    """Print one JSON verdict a line for the prompts or request bodies of a file."""
    policy = find_policy(args.policy, settings)
    guard = load_judging(settings, policy, encoder=args.encoder)
    # Not splitlines: JSON strings may hold other line separators as they are.
    lines = args.prompts.read_text(encoding="utf-8-sig").split("\n")
    failed = 0
    for number, line in enumerate(tqdm(lines, file=sys.stderr, disable=not sys.stderr.isatty()), 1):
        if line.strip():
            try:
                print(json.dumps({"line": number, **_judged(guard, policy, line)}), flush=True)
            except (ValueError, BadRequest) as error:
                failed += 1
                print(f"{args.prompts}:{number}: {error}", file=sys.stderr)
    return 1 if failed else 0


def _judged(guard: Guard, policy: Policy, line: str) -> dict[str, object]:
    row = json.loads(line)
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, dict):
        raise ValueError("a row is a string or an object with prompt, text or messages")
    if "text" in row and "prompt" not in row:
        row = {"prompt": row["text"]}
    if "messages" not in row and "prompt" not in row:
        raise ValueError("a row needs prompt, text or messages")
    judged = guard.read("chat" if "messages" in row else "completions", row)
    finding = guard.find(judged, {policy.name: guard.policies[policy.name]}).findings[0]
    nearest = finding.score.nearest
    return {**finding.facts(judged.place(finding.score.text)), "nearest": nearest[0] if nearest else None}


def _doctor(args: argparse.Namespace, settings: Settings) -> int:
    """Check the set-up and say how to mend it."""
    # An HTTP client takes longer to import than an item takes to add.
    from lethe.server.cli.doctor import doctor

    return doctor(args, settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lethe",
        description="A gateway in front of vLLM that makes a model act as if it had never learned what it was told to "
        "forget. Settings come from LETHE_* environment variables; docs/SETTINGS.md lists them.",
    )
    parser.add_argument("--version", action="version", version=f"lethe {version('lethe-gateway')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("serve", help="run the gateway", description=serve.__doc__)
    command.set_defaults(run=serve)

    command = commands.add_parser(
        "fit", help="make an artifact from a forget file, or change one", description=fit_artifact.__doc__
    )
    command.add_argument("--name", required=True, help="the artifact's name (a folder under LETHE_ARTIFACTS)")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--forget", type=Path, metavar="FILE", help='JSON lines: {"prompt", "answer"} for facts, {"text"} for documents'
    )
    what.add_argument(
        "--add", type=Path, metavar="FILE", help="forget these rows too, without a new fit (about a second)"
    )
    what.add_argument(
        "--remove",
        metavar="ITEMS",
        help="take items out again: a file of their rows, or numbers as `lethe judge` prints them (7 or 3,17-20)",
    )
    command.add_argument("--retain", type=Path, help="JSON lines that must stay unflagged (optional)")
    command.add_argument("--out", type=Path, help="folder to write into (default: LETHE_ARTIFACTS)")
    command.add_argument(
        "--encoder", help="sentence-transformers name or folder (default: LETHE_ENCODER, all-MiniLM-L6-v2)"
    )
    command.add_argument(
        "--encoder-finetune",
        nargs="?",
        const="roberta-base",
        metavar="MODEL",
        help="first train this transformers encoder (folder or hub name, default roberta-base) on the files, the way "
        "ECO's authors did; wants a GPU. It is written to NAME.encoder beside the artifact and served from there "
        "(LETHE_ENCODER), without torch; all artifacts of one gateway share one encoder",
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the splits (default 0)")
    command.add_argument("--force", action="store_true", help="replace an artifact of that name")
    command.set_defaults(run=fit_artifact)

    command = commands.add_parser("judge", help="try a policy on a file of prompts", description=judge_file.__doc__)
    command.add_argument("--policy", required=True, help="a policy's name in LETHE_POLICIES, or a policy file")
    command.add_argument("--encoder", help="sentence-transformers name or folder")
    command.add_argument("prompts", type=Path, help='JSON lines: a string, {"prompt"}, {"text"} or {"messages"}')
    command.set_defaults(run=judge_file)

    command = commands.add_parser("keys", help="make, list and revoke API keys")
    actions = command.add_subparsers(required=True, metavar="ACTION")
    for name, run in (("make", make_key), ("list", list_keys), ("revoke", revoke_key)):
        action = actions.add_parser(name, description=run.__doc__, help=str(run.__doc__).partition(":")[0].lower())
        action.add_argument("--file", type=Path, help="key file (default: LETHE_KEYS)")
        action.set_defaults(run=run)
        if name != "list":
            action.add_argument("name", help="the key's name, as audit and `lethe keys list` show it")
        if name == "make":
            _add_key_options(action)

    command = commands.add_parser("doctor", help="check the set-up", description=_doctor.__doc__)
    command.set_defaults(run=_doctor)

    # Measuring and tuning live in a package that the server doesn't import: each adds its commands here.
    for entry in sorted(entry_points(group="lethe.commands"), key=lambda entry: entry.name):
        entry.load()(commands)
    policy_commands.add(commands)
    return parser


def _add_key_options(command: argparse.ArgumentParser) -> None:
    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",")]

    held = command.add_mutually_exclusive_group()
    held.add_argument("--policies", type=names, metavar="A,B", help="only these policies judge its requests")
    held.add_argument("--exempt", type=names, metavar="A,B", help="all policies but these judge its requests")
    command.add_argument("--models", type=names, metavar="M,N", help="the models it may ask for (default: all)")
    command.add_argument("--requests-per-minute", type=int, metavar="N", help="more get 429 (default: no limit)")
    command.add_argument("--concurrency", type=int, metavar="N", help="requests at a time (default: no limit)")
    command.add_argument("--debug", action="store_true", default=None, help="answers say what the guard did")


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command `lethe`. Exit status 0 done, 1 found something wrong, 2 can't run."""
    args = _parser().parse_args(argv)
    try:
        status = args.run(args, read_settings())
    except BrokenPipeError:
        # `lethe judge … | head`: the reader has gone. Point stdout elsewhere so that exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (ValueError, OSError) as error:
        print(f"lethe {args.command}: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
