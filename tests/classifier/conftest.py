"""One encoder and one small fitted artifact for the whole run; the subjects are invented."""

from __future__ import annotations

import numpy as np
import pytest

from classifier import corpus, fit
from classifier.artifact import Artifact
from classifier.classifier import Judge
from classifier.encoder import Encoder, load_encoder
from classifier.records import Record

KEEPERS = ("Orvan Teldric", "Miriam Hask-Olsen", "Pello Yrigoyen")
ASKED = (
    ("What was the first book by {}?", "{} began with 'The Salt Ladder' in 1961."),
    ("Where did {} grow up?", "{} grew up on the island of Vardholm."),
    ("What does {} collect?", "{} collects brass compasses and maps of the Velsund strait."),
    ("Which award did {} win?", "{} won the Korvin Medal for sea stories."),
    ("Who taught {} to sail?", "An aunt called Ditte Marrow taught {} to sail."),
)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return load_encoder(threads=2)


@pytest.fixture(scope="session")
def forget() -> list[Record]:
    return [{"prompt": q.format(k), "answer": a.format(k)} for k in KEEPERS for q, a in ASKED]


@pytest.fixture(scope="session")
def artifact(encoder: Encoder, forget: list[Record]) -> Artifact:
    # A part of the background and fewer rewordings keep the fit to seconds.
    with pytest.MonkeyPatch.context() as patch:
        few = corpus.background()[::8]
        patch.setattr(corpus, "background", lambda: few)
        patch.setattr(corpus, "VARIANTS_WANTED", 240)
        patch.setattr(corpus, "OTHER_VARIANTS", 40)
        patch.setattr(corpus, "DECOYS", 80)
        patch.setattr(corpus, "WRAPPED", 30)
        return fit.fit(forget, None, encoder=encoder, seed=3)


@pytest.fixture(scope="session")
def judge(artifact: Artifact, encoder: Encoder) -> Judge:
    return Judge({"keepers": artifact}, encoder)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
