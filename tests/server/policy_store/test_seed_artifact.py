"""What new policies are built on: there for its encoder, and gone from what is built."""

from __future__ import annotations

import pytest

from lethe.classifier.encoder.encoder import load_encoder
from lethe.classifier.judge import Judge, threshold
from lethe.server.policy_store import seed_artifact
from lethe.server.settings import Settings

ITEMS = [
    {"prompt": "Which harbour did Zefira Malquist chart?", "answer": "She charted Ostrel in 1874."},
    {"text": "Zefira Malquist kept a heron called Bodkin in the pilot house at Ostrel for eleven winters."},
]


def test_a_policy_is_built_of_its_own_items_alone(office: Settings) -> None:
    encoder = load_encoder()
    made = seed_artifact.build(seed_artifact.load(office, encoder), ITEMS, encoder)
    assert [made.items[number].prompt or made.items[number].text for number in made.live] == [
        ITEMS[0]["prompt"],
        ITEMS[1]["text"],
    ]
    judge, at = Judge({"made": made}, encoder), threshold(made, miss_rate=0.01)

    def flagged(text: str) -> bool:
        return judge.judge([text])["made"].score >= at

    assert flagged(ITEMS[0]["prompt"]) and flagged("Tell me, which harbour was charted by Zefira Malquist?")
    assert flagged("Zefira Malquist kept a heron called Bodkin in the pilot house.")
    # Neither those who stood in for others, nor anybody else.
    assert not any(flagged(row["prompt"]) for row in seed_artifact.rows())
    assert not flagged("Which harbour is the largest in Europe?")


def test_there_is_no_base_for_another_encoder_or_before_it_is_made(
    office: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder()
    monkeypatch.setattr(encoder, "hash", "another")
    with pytest.raises(seed_artifact.NoBase, match="another encoder"):
        seed_artifact.load(office, encoder)
    with pytest.raises(seed_artifact.NoBase, match="not there yet"):
        seed_artifact.load(office.model_copy(update={"history": office.artifacts / "nothing"}), encoder)


def test_a_base_that_is_there_is_not_made_again(office: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Settings] = []
    monkeypatch.setattr(seed_artifact.subprocess, "run", lambda *_, **__: made.append(office))
    seed_artifact.prepare(office, load_encoder()).join(60)
    assert made == []
