"""`lethe keys`: create, list and revoke API keys."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lethe.server.admission import api_keys
from lethe.server.admission.api_keys import KeysError
from lethe.server.policy.files import read_policies
from lethe.server.settings import Settings, SettingsError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

# The options of `lethe keys make`, which are fields of a key (`server/admission/api_keys.py`).
KEY_FIELDS = ("name", "policies", "exempt", "models", "requests_per_minute", "concurrency", "debug")
# Hex digits of a key's hash that `lethe keys list` prints: enough to tell keys apart.
LISTED_HASH_DIGITS = 12


def add_commands(commands: Commands) -> None:
    """Add `lethe keys make`, `list` and `revoke`."""
    command = commands.add_parser(
        "keys",
        help="create, list and revoke API keys",
        description="Create, list and revoke API keys. A running gateway uses changes within a second.",
    )
    actions = command.add_subparsers(required=True, metavar="ACTION")
    for name, run in (("make", make_key), ("list", list_keys), ("revoke", revoke_key)):
        action = actions.add_parser(name, description=run.__doc__, help=str(run.__doc__).partition(".")[0].lower())
        action.add_argument("--file", type=Path, metavar="FILE", help="key file (default: LETHE_KEYS)")
        action.set_defaults(run=run)
        if name != "list":
            action.add_argument("name", help="name of the key, in audit records and `lethe keys list`")
        if name == "make":
            _add_key_options(action)


def _add_key_options(command: argparse.ArgumentParser) -> None:
    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",")]

    scope = command.add_mutually_exclusive_group()
    scope.add_argument(
        "--policies", type=names, metavar="A,B",
        help="only these policies judge its requests; if one of them is missing, all policies do",
    )  # fmt: skip
    scope.add_argument(
        "--exempt", type=names, metavar="A,B", help="all policies except these judge its requests, including new ones"
    )
    command.add_argument(
        "--models", type=names, metavar="M,N", help="models it may use; others are answered with 404 (default: all)"
    )
    command.add_argument(
        "--requests-per-minute", type=int, metavar="N",
        help="rate limit; up to N requests may come at once, and one more every 60/N seconds (default: no limit)",
    )  # fmt: skip
    command.add_argument(
        "--concurrency", type=int, metavar="N", help="maximum number of requests in progress (default: no limit)"
    )
    command.add_argument(
        "--debug", action="store_true", default=None,
        help="responses have the headers x-lethe-action and x-lethe-policies, which reveal what is on the forget list",
    )  # fmt: skip


def make_key(args: argparse.Namespace, settings: Settings) -> int:
    """Create an API key and print it. It can't be shown again: the file holds only its hash."""
    names = [policy.name for policy in read_policies(settings.policies)] if args.policies or args.exempt else []
    for name in (*(args.policies or ()), *(args.exempt or ())):
        if name not in names:
            raise KeysError(
                f"there is no policy {name!r} in {settings.policies} (policies: {', '.join(names) or 'none'})"
            )
    fields = {field: value for field in KEY_FIELDS if (value := getattr(args, field)) is not None}
    print(api_keys.create_key(_key_file(args, settings), **fields))
    return 0


def list_keys(args: argparse.Namespace, settings: Settings) -> int:
    """List the API keys. One JSON object per line: name, limits, and the first digits of the key's hash."""
    for key in api_keys.read_keys(_key_file(args, settings)):
        fields = key.model_dump(mode="json", exclude_defaults=True)
        print(json.dumps({**fields, "sha256": key.sha256[:LISTED_HASH_DIGITS]}))
    return 0


def revoke_key(args: argparse.Namespace, settings: Settings) -> int:
    """Delete an API key. A running gateway rejects it within a second."""
    api_keys.revoke_key(_key_file(args, settings), args.name)
    return 0


def _key_file(args: argparse.Namespace, settings: Settings) -> Path:
    path: Path | None = args.file or settings.keys
    if path is None:
        raise SettingsError("there is no key file: set LETHE_KEYS, or use --file")
    return path
