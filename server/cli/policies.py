"""`lethe policies` and `lethe report shadow`: current policies, past versions, and what shadow policies would do."""

from __future__ import annotations

import argparse
import getpass
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lethe.server.observability.metrics import Metrics
from lethe.server.policy.files import read_policies
from lethe.server.policy_store import shadow_report
from lethe.server.policy_store.load import load_policies
from lethe.server.policy_store.versions import HistoryError, VersionHistory, policies_lock
from lethe.server.settings import Settings, SettingsError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add `lethe policies` and `lethe report shadow`, after the commands of other packages."""
    policies = commands.add_parser(
        "policies",
        help="list policies and their past versions, and restore one",
        description="List the policies and their past versions, and restore a version.",
    )
    actions = policies.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run in (("list", list_policies), ("history", list_versions), ("rollback", rollback)):
        action = actions.add_parser(name, description=run.__doc__, help=str(run.__doc__).partition(".")[0].lower())
        action.set_defaults(run=run)
    action.add_argument(
        "version", type=int, nargs="?", help="number of a version in `lethe policies history` (default: the previous)"
    )
    report = commands.choices.get("report")
    if report is None:
        report = commands.add_parser("report", help="reports from measured figures")
        report.add_subparsers(dest="report", required=True, metavar="REPORT")
    reports = next(action for action in report._actions if isinstance(action, argparse._SubParsersAction))
    command = reports.add_parser(
        "shadow", help="what policies in shadow mode would have done", description=report_shadow.__doc__
    )
    command.add_argument("--audit", type=Path, metavar="FILE", help="audit file (default: LETHE_AUDIT)")
    command.add_argument(
        "--since", metavar="WHEN", help="only records since then: 90m, 24h, 7d, or a date such as 2026-01-31T12:00"
    )
    command.add_argument("--policy", metavar="NAME", help="only this policy")
    command.add_argument("--json", action="store_true", help="print one JSON object per policy")
    command.set_defaults(run=report_shadow)


def list_policies(args: argparse.Namespace, settings: Settings) -> int:
    """List the policy files. A running gateway uses changes within two seconds."""
    for policy in read_policies(settings.policies):
        models = ", ".join(policy.models) if policy.models else "all models"
        print(f"{policy.name:<24} {policy.mode:<8} {policy.action:<9} {policy.hash}  {policy.artifact}; {models}")
    return 0


def list_versions(args: argparse.Namespace, settings: Settings) -> int:
    """List the saved versions of the policies. The last one is the current one."""
    history = VersionHistory(settings)
    for version in history.versions():
        when = datetime.fromtimestamp(version.time).isoformat(" ", "seconds")
        note = f", restores {version.restores}" if version.restores else ""
        print(
            f"{version.number:>5}  {when}  {version.hash}  by {version.by}{note}: {', '.join(sorted(version.policies))}"
        )
    return 0


def rollback(args: argparse.Namespace, settings: Settings) -> int:
    """Restore a past version of the policies. Its files replace the current ones, and it becomes the newest version."""
    history = VersionHistory(settings)
    with policies_lock(settings):
        versions = history.versions()
        if args.version is None and len(versions) < 2:
            raise HistoryError(f"there is no previous version in {history.folder}")
        restored = history.get(versions[-2].number if args.version is None else args.version)
        history.restore(restored)
        author = f"lethe policies rollback ({getpass.getuser()})"
        version = history.save(load_policies(settings, Metrics()), author, restored.number)
    print(f"restored version {restored.number} as version {version.number}")
    return 0


def report_shadow(args: argparse.Namespace, settings: Settings) -> int:
    """Summarize from the audit file what policies in shadow mode would have done: counts, scores and places, never a
    text."""
    path = args.audit or settings.audit
    if path is None:
        raise SettingsError("LETHE_AUDIT names no file: use --audit")
    start = shadow_report.parse_since(args.since) if args.since else float("-inf")
    summaries, unreadable = shadow_report.summarize(shadow_report.audit_lines(path), start=start)
    summaries = [summary for summary in summaries if args.policy in (None, summary.policy)]
    for summary in summaries:
        print(json.dumps(summary.to_json()) if args.json else "\n".join(shadow_report.report_lines(summary)))
    if not summaries and not args.json:
        print("no policy in shadow mode has judged a request")
    if unreadable and not args.json:
        print(f"{unreadable} lines could not be read")
    return 0
