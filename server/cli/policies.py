"""`lethe policies` and `lethe report shadow`: what is in force, what was, what would have been."""

from __future__ import annotations

import argparse
import getpass
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import read_all
from lethe.server.policy_store import shadow_report
from lethe.server.policy_store.load import load
from lethe.server.policy_store.versions import History, HistoryError, locked
from lethe.server.settings import Settings, SettingsError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Register the commands on the parser of `lethe`, which has those of other packages already."""
    policies = commands.add_parser("policies", help="list policies, their past versions, and bring one back")
    actions = policies.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run in (("list", list_policies), ("history", list_versions), ("rollback", rollback)):
        action = actions.add_parser(name, description=run.__doc__, help=str(run.__doc__).partition(".")[0].lower())
        action.set_defaults(run=run)
    action.add_argument(
        "version", type=int, nargs="?", help="a number of `lethe policies history` (default: the one before)"
    )
    report = commands.choices.get("report")
    if report is None:
        report = commands.add_parser("report", help="reports for people, from measured numbers")
        report.add_subparsers(dest="report", required=True, metavar="REPORT")
    reports = next(action for action in report._actions if isinstance(action, argparse._SubParsersAction))
    command = reports.add_parser(
        "shadow", help="what policies in shadow would have done", description=report_shadow.__doc__
    )
    command.add_argument("--audit", type=Path, metavar="FILE", help="audit file (default: LETHE_AUDIT)")
    command.add_argument("--since", metavar="WHEN", help="90m, 24h, 7d, or a date such as 2026-01-31T12:00")
    command.add_argument("--policy", help="this one only")
    command.add_argument("--json", action="store_true", help="as one JSON object a policy")
    command.set_defaults(run=report_shadow)


def list_policies(args: argparse.Namespace, settings: Settings) -> int:
    """List the policies as their files are now. A running gateway serves them within a second or two."""
    for policy in read_all(settings.policies):
        models = ", ".join(policy.models) if policy.models else "all models"
        print(f"{policy.name:<24} {policy.mode:<8} {policy.action:<9} {policy.hash}  {policy.artifact}; {models}")
    return 0


def list_versions(args: argparse.Namespace, settings: Settings) -> int:
    """List the versions that are kept. The last one is in force."""
    history = History(settings)
    for version in history.versions():
        when = datetime.fromtimestamp(version.time).isoformat(" ", "seconds")
        note = f", brings back {version.restores}" if version.restores else ""
        print(
            f"{version.number:>5}  {when}  {version.hash}  by {version.by}{note}: {', '.join(sorted(version.policies))}"
        )
    return 0


def rollback(args: argparse.Namespace, settings: Settings) -> int:
    """Bring a past version back. Its files take the place of those that are there; it becomes the newest version."""
    history = History(settings)
    with locked(settings):
        known = history.versions()
        if args.version is None and len(known) < 2:
            raise HistoryError(f"there is no version before this one in {history.folder}")
        wanted = history.get(known[-2].number if args.version is None else args.version)
        history.restore(wanted)
        by = f"lethe policies rollback ({getpass.getuser()})"
        version = history.keep(load(settings, Metrics()), by, wanted.number)
    print(f"version {wanted.number} is back, as version {version.number}")
    return 0


def report_shadow(args: argparse.Namespace, settings: Settings) -> int:
    """Sum up what policies in shadow would have done, from the audit file. Shows places and numbers, never a text."""
    path = args.audit or settings.audit
    if path is None:
        raise SettingsError("LETHE_AUDIT names no file: give one with --audit")
    start = shadow_report.since(args.since) if args.since else float("-inf")
    found, unread = shadow_report.summaries(shadow_report.read(path), start=start)
    found = [summary for summary in found if args.policy in (None, summary.policy)]
    for summary in found:
        print(json.dumps(summary.facts()) if args.json else "\n".join(shadow_report.text(summary)))
    if not found and not args.json:
        print("no policy in shadow has judged a request")
    if unread and not args.json:
        print(f"{unread} lines could not be read")
    return 0
