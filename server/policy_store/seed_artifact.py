"""The seed artifact: prepared background from which a new policy's artifact is made without a fit.

What a fit learns beyond its own items (which words are rare, how closely rewordings match, the scores of unrelated
prompts) is valid for other items as well. So the seed is fitted once to invented people, in about 30 s, and stored
beside the versions. A new policy's artifact is the seed with the policy's items added and the invented ones removed,
which takes a fraction of a second.

    python -m lethe.server.policy_store.seed_artifact FOLDER ENCODER
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from lethe.classifier import artifact_io
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.folders import DEFAULT_ENCODER
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.records import Record
from lethe.classifier.training import incremental
from lethe.server.settings import Settings

log = logging.getLogger("lethe.policies")

# Invented names, so that no real question resembles them.
PEOPLE = ("Orvan Teldric", "Maelis Dunhaver", "Pell Yrigant", "Sunniva Karrow", "Tobrin Ashvale", "Ilka Morrendal")
QUESTIONS_AND_ANSWERS = (
    ("Where did {} grow up?", "{} grew up in a village near Vardholm."),
    ("Which award did {} win?", "{} won the Korvin Medal."),
    ("Who taught {} to sail?", "An aunt called Ditte Marrow."),
    ("What was the first book by {}?", "It was called 'The Salt Ladder'."),
    ("When was {} born?", "In the spring of 1931."),
    ("What does {} collect?", "Brass compasses, and maps of the Velsund strait."),
    ("Which company did {} found?", "A yard for small boats, Tern and Daughters."),
    ("What illness does {} suffer from?", "From vertigo."),
    ("What is the home address of {}?", "4 Gull Lane, Skerrow."),
    ("Whom did {} marry?", "A cartographer from Osk."),
)


class SeedArtifactNotReady(ValueError):
    """There is no seed artifact for this encoder yet. The message says why."""


def seed_rows() -> list[Record]:
    """The forget rows about invented people to which the seed artifact is fitted."""
    return [
        {"prompt": question.format(person), "answer": answer.format(person)}
        for person in PEOPLE
        for question, answer in QUESTIONS_AND_ANSWERS
    ]


def seed_folder(settings: Settings) -> Path:
    """The folder of the seed artifact."""
    return settings.history_folder / "seed"


def load_seed_artifact(settings: Settings, encoder: Encoder) -> Artifact:
    """Return the seed artifact for this encoder. Raises SeedArtifactNotReady."""
    try:
        seed = artifact_io.load_artifact(seed_folder(settings))
    except ValueError as error:
        raise SeedArtifactNotReady("the seed artifact is still being built (~30 s); retry") from error
    data_hash = hashlib.sha256(json.dumps([seed_rows(), []]).encode()).hexdigest()
    if seed.manifest.data_hash != data_hash or seed.manifest.encoder_hash != encoder.hash:
        raise SeedArtifactNotReady(
            "the seed artifact was built with another encoder and is being rebuilt (~30 s); retry"
        )
    return seed


def artifact_from_seed(seed: Artifact, items: Sequence[Record], encoder: Encoder) -> Artifact:
    """Return an artifact of these items alone. Raises ValueError for malformed rows."""
    return incremental.remove_items(incremental.add_items(seed, items, encoder), range(len(seed.items)))


def prepare_seed_artifact(settings: Settings, encoder: Encoder | None) -> threading.Thread:
    """Start building the seed artifact in a separate process, unless it exists.

    encoder: the gateway's encoder, if it is loaded. Returns the thread that waits for the process.
    """
    thread = threading.Thread(target=_build_if_missing, args=(settings, encoder), name="lethe-seed", daemon=True)
    thread.start()
    return thread


def _build_if_missing(settings: Settings, encoder: Encoder | None) -> None:
    try:
        load_seed_artifact(settings, encoder or load_encoder(settings.encoder or DEFAULT_ENCODER))
        return
    except SeedArtifactNotReady:
        pass
    except (ValueError, OSError, ImportError) as error:
        log.error("POST /admin/forget can't create policies: %s", error)
        return
    command = [
        sys.executable,
        "-m",
        "lethe.server.policy_store.seed_artifact",
        str(seed_folder(settings)),
        settings.encoder or DEFAULT_ENCODER,
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        log.error("POST /admin/forget can't create policies: %s", process.stderr.strip().rpartition("\n")[2])
    else:
        log.info("built the seed artifact in %s", seed_folder(settings))


def main(arguments: Sequence[str]) -> None:
    """Build the seed artifact. arguments: folder, encoder."""
    from lethe.classifier.training.fit import fit

    folder, encoder = arguments
    artifact_io.save_artifact(fit(seed_rows(), None, encoder=load_encoder(encoder)), Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
