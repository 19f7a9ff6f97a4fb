"""An artifact to add to, so that a new policy needs no fit: made once, kept beside the versions.

What a fit learns beyond its own items (which words are rare, how closely rewordings match, where the scores of
other prompts end) holds for other items as well. So it is fitted once to invented people, and a new policy's
artifact is that one with its own items added and the invented ones taken out: a fraction of a second.

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

from lethe.classifier import artifact as artifacts_io
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import DEFAULT_ENCODER, Encoder, load_encoder
from lethe.classifier.records import Record
from lethe.classifier.training import incremental
from lethe.server.settings import Settings

log = logging.getLogger("lethe.policies")

# Nobody's names, so that nobody's questions resemble them.
PEOPLE = ("Orvan Teldric", "Maelis Dunhaver", "Pell Yrigant", "Sunniva Karrow", "Tobrin Ashvale", "Ilka Morrendal")
ASKED = (
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


class NoBase(ValueError):
    """There is no base yet; the message says why."""


def rows() -> list[Record]:
    return [{"prompt": q.format(person), "answer": a.format(person)} for person in PEOPLE for q, a in ASKED]


def folder(settings: Settings) -> Path:
    return settings.history_folder / "base"


def load(settings: Settings, encoder: Encoder) -> Artifact:
    """The base for this encoder. Raises NoBase."""
    try:
        found = artifacts_io.load(folder(settings))
    except ValueError as error:
        raise NoBase(
            "what new policies are built on is not there yet: it is made once, in about half a minute"
        ) from error
    wanted = hashlib.sha256(json.dumps([rows(), []]).encode()).hexdigest()
    if found.manifest.data_hash != wanted or found.manifest.encoder_hash != encoder.hash:
        raise NoBase("what new policies are built on was made with another encoder, and is being made anew")
    return found


def build(base: Artifact, items: Sequence[Record], encoder: Encoder) -> Artifact:
    """An artifact of these items alone. Raises ValueError for malformed rows."""
    return incremental.remove(incremental.add(base, items, encoder), range(len(base.items)))


def prepare(settings: Settings, encoder: Encoder | None) -> threading.Thread:
    """Make the base in a process of its own, unless it is there. encoder: the gateway's, if it has loaded one."""
    thread = threading.Thread(target=_prepare, args=(settings, encoder), name="lethe-base", daemon=True)
    thread.start()
    return thread


def _prepare(settings: Settings, encoder: Encoder | None) -> None:
    try:
        load(settings, encoder or load_encoder(settings.encoder or DEFAULT_ENCODER))
        return
    except NoBase:
        pass
    except (ValueError, OSError, ImportError) as error:
        log.error("POST /admin/forget can make no new policies: %s", error)
        return
    command = [
        sys.executable,
        "-m",
        "lethe.server.policy_store.seed_artifact",
        str(folder(settings)),
        settings.encoder or DEFAULT_ENCODER,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        log.error("POST /admin/forget can make no new policies: %s", done.stderr.strip().rpartition("\n")[2])
    else:
        log.info("made what new policies are built on: %s", folder(settings))


def main(arguments: Sequence[str]) -> None:
    from lethe.classifier.training.fit import fit

    place, encoder = arguments
    artifacts_io.save(fit(rows(), None, encoder=load_encoder(encoder)), Path(place))


if __name__ == "__main__":
    main(sys.argv[1:])
