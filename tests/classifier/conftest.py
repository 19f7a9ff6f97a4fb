"""One encoder and one small fitted artifact for the whole run; the subjects are invented."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge
from lethe.classifier.records import Record
from lethe.classifier.training import calibration, fit, rows

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
def prefilter_scores() -> dict[int, float]:
    """The prefilter's score of each forget text that the small artifact was calibrated on; filled by its fit."""
    return {}


@pytest.fixture(scope="session")
def artifact(encoder: Encoder, forget: list[Record], prefilter_scores: dict[int, float]) -> Artifact:
    compute = calibration.prefilter_scores

    def record_scores(*arguments: Any, **options: Any) -> dict[int, float]:
        prefilter_scores.update(compute(*arguments, **options))
        return dict(prefilter_scores)

    # A part of the background and fewer rewordings keep the fit to seconds.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "prefilter_scores", record_scores)
        few = rows.background_prompts()[::8]
        patch.setattr(rows, "background_prompts", lambda: few)
        patch.setattr(rows, "REWORDINGS_TOTAL", 240)
        patch.setattr(rows, "OTHER_REWORDINGS", 40)
        patch.setattr(rows, "DECOYS", 80)
        patch.setattr(rows, "WRAPPED_ROWS", 30)
        return fit.fit(forget, None, encoder=encoder, seed=3)


@pytest.fixture(scope="session")
def nameless(artifact: Artifact) -> Artifact:
    """The artifact without subjects: no name flags anything."""
    return replace(artifact, manifest=replace(artifact.manifest, subjects=[]))


@pytest.fixture(scope="session")
def judge(artifact: Artifact, encoder: Encoder) -> Judge:
    return Judge({"keepers": artifact}, encoder)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
