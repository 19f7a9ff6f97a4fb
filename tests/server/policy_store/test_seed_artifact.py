"""The seed artifact: valid for one encoder, and without trace in the artifacts built from it."""

from __future__ import annotations

import pytest

from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge, threshold
from lethe.server.policy_store import seed_artifact
from lethe.server.settings import Settings

ITEMS = [
    {"prompt": "Which harbour did Zefira Malquist chart?", "answer": "She charted Ostrel in 1874."},
    {"text": "Zefira Malquist kept a heron called Bodkin in the pilot house at Ostrel for eleven winters."},
]


def test_an_artifact_from_the_seed_has_only_the_policys_items(office: Settings) -> None:
    encoder = load_encoder()
    made = seed_artifact.artifact_from_seed(seed_artifact.load_seed_artifact(office, encoder), ITEMS, encoder)
    assert [made.items[number].prompt or made.items[number].text for number in made.live_items] == [
        ITEMS[0]["prompt"],
        ITEMS[1]["text"],
    ]
    judge, at = Judge({"made": made}, encoder), threshold(made, miss_rate=0.01)

    def flagged(text: str) -> bool:
        return judge.judge([text])["made"].score >= at

    assert flagged(ITEMS[0]["prompt"]) and flagged("Tell me, which harbour was charted by Zefira Malquist?")
    assert flagged("Zefira Malquist kept a heron called Bodkin in the pilot house.")
    # Neither those who stood in for others, nor anybody else.
    assert not any(flagged(row["prompt"]) for row in seed_artifact.seed_rows())
    assert not flagged("Which harbour is the largest in Europe?")


def test_a_missing_or_foreign_seed_artifact_is_an_error(office: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder()
    monkeypatch.setattr(encoder, "hash", "another")
    with pytest.raises(seed_artifact.SeedArtifactNotReady, match="another encoder"):
        seed_artifact.load_seed_artifact(office, encoder)
    with pytest.raises(seed_artifact.SeedArtifactNotReady, match="still being built"):
        seed_artifact.load_seed_artifact(office.model_copy(update={"history": office.artifacts / "nothing"}), encoder)


def test_an_existing_seed_artifact_is_not_rebuilt(office: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Settings] = []
    monkeypatch.setattr(seed_artifact.subprocess, "run", lambda *_, **__: made.append(office))
    seed_artifact.prepare_seed_artifact(office, load_encoder()).join(60)
    assert made == []
