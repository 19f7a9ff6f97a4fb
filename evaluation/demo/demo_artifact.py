"""The artifact of the demo: fitted once, shipped, and copied into build/demo.

python -m lethe.evaluation.demo.demo_artifact      # fit the shipped artifact again (minutes of CPU)
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from lethe.classifier.artifact_io import artifact_lock
from lethe.evaluation.serving import StartError, clean_env
from lethe.evaluation.unlearning import tofu

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "demo"
ARTIFACTS = BUILD / "artifacts"
ARTIFACT = "tofu-forget10"
# A test checks that its data and its format are current.
SHIPPED_ARTIFACTS = Path(__file__).parent / "artifacts"


def prepare_artifact(*, fit: bool = False) -> None:
    """Put the demo's artifact, and the data that it was fitted on, into build/demo.

    The artifact is a copy of the shipped one; with `fit`, the present code fits it. A copy whose files equal the
    shipped ones is kept. Raises StartError when `lethe fit` fails.
    """
    forget, retain = write_data(BUILD)
    if fit:
        run_fit(forget, retain, ARTIFACTS)
        return
    target, shipped = ARTIFACTS / ARTIFACT, SHIPPED_ARTIFACTS / ARTIFACT
    with artifact_lock(target):
        if _file_hashes(target) != _file_hashes(shipped):
            partial = ARTIFACTS / f".{ARTIFACT}.partial"
            for old in (partial, target):
                shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(shipped, partial)
            partial.rename(target)


def write_data(folder: Path) -> tuple[Path, Path]:
    """Write the forget and the retain file of the demo into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    forget, retain = folder / "forget.jsonl", folder / "retain.jsonl"
    tofu.write_records(tofu.forget_facts(), forget)
    tofu.write_records([fact for facts in tofu.retain_facts() for fact in facts], retain)
    return forget, retain


def run_fit(forget: Path, retain: Path, folder: Path) -> None:
    """Fit the demo's artifact into `folder` with `lethe fit`. Raises StartError when that fails."""
    command = [sys.executable, "-m", "lethe.server.cli.main", "fit", "--name", ARTIFACT, "--force"]
    files = ["--out", str(folder), "--forget", str(forget), "--retain", str(retain)]
    if subprocess.run([*command, *files], cwd=ROOT, env=clean_env(), check=False).returncode:
        raise StartError("`lethe fit` failed")


def _file_hashes(artifact: Path) -> object:
    """The hashes of an artifact's files; None when there is no artifact."""
    try:
        return json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return None


def main() -> None:
    run_fit(*write_data(BUILD), SHIPPED_ARTIFACTS)
    for path in (SHIPPED_ARTIFACTS / ARTIFACT).iterdir():
        path.chmod(0o644)
    (SHIPPED_ARTIFACTS / ".lethe.lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
