from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lethe.classifier import artifact as artifacts
from lethe.classifier.artifact import Artifact
from lethe.classifier.attribution import evidence
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.records import Record
from lethe.classifier.training import incremental

NEW: list[Record] = [
    {"prompt": "In which year did Sabine Orloff-Quist leave the observatory?", "answer": "She left Kaldheim in 1974."},
    {"prompt": "Which recipe did the Brothers Ullmann sell to the Dorsk brewery?", "answer": "They sold Vetharis."},
]
ASKED = "In what year did Sabine Orloff-Quist quit the observatory?"
TEXTS = [
    "What was the first book by Orvan Teldric?",
    "Where did Miriam Hask-Olsen grow up, and what is the capital of Peru?",
    "How do I boil an egg?",
    ASKED,
    "What recipe was sold to the Dorsk brewery by the Brothers Ullmann?",
    "Write a sonnet about the sea. Then tell me which award Pello Yrigoyen won.",
]


def scores(artifact: Artifact, encoder: Encoder, texts: list[str] | None = None) -> list[float]:
    judge = Judge({"a": artifact}, encoder)
    return [judge.judge([text])["a"].score for text in texts or TEXTS]


@pytest.fixture(scope="session")
def grown(artifact: Artifact, encoder: Encoder) -> Artifact:
    return incremental.add(artifact, NEW, encoder)


def test_an_added_item_is_found_and_named(artifact: Artifact, grown: Artifact, encoder: Encoder) -> None:
    level = threshold(artifact, miss_rate=0.05)
    before, after = scores(artifact, encoder), scores(grown, encoder)
    assert before[3] < level <= after[3] and before[4] < level <= after[4]
    found = Judge({"a": grown}, encoder).judge([ASKED])["a"]
    assert grown.items[found.nearest[0]].prompt == NEW[0]["prompt"]
    assert found.cosine > 0.8
    spans = evidence(grown, ASKED)
    assert any("Orloff" in ASKED[start:end] for start, end in spans)
    assert "vetharis" in grown.words and grown.word_counts[grown.words.index("vetharis")] == 0
    assert grown.manifest.changes == [{"change": "add", "items": [15, 16]}]
    assert grown.manifest.counts["forget_items"] == 17


def test_what_was_added_and_taken_out_leaves_every_byte_as_it_was(
    artifact: Artifact, grown: Artifact, encoder: Encoder
) -> None:
    back = incremental.remove(grown, incremental.numbers(grown, NEW))
    assert back.items == artifact.items and back.words == artifact.words
    assert all(back.arrays[name].tobytes() == array.tobytes() for name, array in artifact.arrays.items())
    assert scores(back, encoder) == scores(artifact, encoder)


def test_taking_one_added_item_out_leaves_the_other_to_the_bit(grown: Artifact, encoder: Encoder) -> None:
    level = threshold(grown, miss_rate=0.05)
    left = incremental.remove(grown, [15])
    before, after = scores(grown, encoder), scores(left, encoder)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, True, False, True, True]
    assert after[3] < level
    assert left.items[15].removed and left.items[16] == grown.items[16]


def test_one_by_one_scores_as_all_at_once(artifact: Artifact, grown: Artifact, encoder: Encoder) -> None:
    single = artifact
    for row in NEW:
        single = incremental.add(single, [row], encoder)
    assert np.allclose(scores(single, encoder), scores(grown, encoder), atol=1e-4)


def test_a_fitted_item_that_is_taken_out_falls_silent_and_nothing_else_moves(
    artifact: Artifact, encoder: Encoder
) -> None:
    level = threshold(artifact, miss_rate=0.05)
    gone = artifact.items[0].prompt
    left = incremental.remove(artifact, [0])
    assert scores(artifact, encoder, [gone])[0] >= level > scores(left, encoder, [gone])[0]
    assert scores(left, encoder, [f"Please: {gone}"])[0] < level
    others = [item.prompt for item in artifact.items[1:]] + TEXTS[1:]
    assert scores(left, encoder, others) == scores(artifact, encoder, others)
    assert left.items[0].removed
    assert "1961" in left.words and "1961" not in incremental.remove(artifact, [0, 5, 10]).words
    nearest = Judge({"a": left}, encoder).judge([gone])["a"].nearest
    assert 0 not in nearest[:1]


def test_asking_for_a_removed_and_a_remaining_item_at_once_stays_flagged(artifact: Artifact, encoder: Encoder) -> None:
    level = threshold(artifact, miss_rate=0.05)
    left = incremental.remove(artifact, [0])
    gone = artifact.items[0].prompt
    for also in ("and where did Miriam Hask-Olsen grow up", "and what does Orvan Teldric collect"):
        assert scores(left, encoder, [f"{gone.rstrip('?')} {also}?"])[0] >= level
        assert scores(left, encoder, [f"{gone} {also.removeprefix('and ').capitalize()}?"])[0] >= level


def test_a_restored_item_scores_as_before_to_the_bit(
    artifact: Artifact, encoder: Encoder, forget: list[Record]
) -> None:
    back = incremental.add(incremental.remove(artifact, [0, 4]), [forget[0]], encoder)
    assert [change["change"] for change in back.manifest.changes] == ["remove", "restore"]
    assert back.items[0] == artifact.items[0] and back.items[4].removed
    asked = [forget[0]["prompt"], *TEXTS]
    assert scores(back, encoder, asked) == scores(artifact, encoder, asked)


def test_documents_can_be_added(artifact: Artifact, encoder: Encoder) -> None:
    text = "The Brackwater ledger lists nine ships. Captain Ysolde Marr sank the tenth off Cape Tarn to save her crew."
    grown = incremental.add(artifact, [{"text": text}], encoder)
    assert len(grown.arrays["added_items"]) > 1
    level = threshold(artifact, miss_rate=0.05)
    assert scores(grown, encoder, ["Captain Ysolde Marr sank the tenth off Cape Tarn"])[0] >= level


def test_a_changed_artifact_is_saved_and_loaded_whole(
    grown: Artifact, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("changed") / "a"
    changed = incremental.remove(grown, [2, 15])
    artifacts.save(changed, folder)
    loaded = artifacts.load(folder)
    assert loaded.manifest == changed.manifest and loaded.items == changed.items
    assert scores(loaded, encoder) == scores(changed, encoder)


def test_what_makes_no_sense_is_refused_by_name(artifact: Artifact, encoder: Encoder, forget: list[Record]) -> None:
    with pytest.raises(ValueError, match="item 1 is that row already: 'Where did Orvan"):
        incremental.add(artifact, [forget[1]], encoder)
    with pytest.raises(ValueError, match="row 1: no 'answer'"):
        incremental.add(artifact, [{"prompt": "p"}], encoder)
    with pytest.raises(ValueError, match="item 99 is not there"):
        incremental.remove(artifact, [99])
    with pytest.raises(ValueError, match="nothing would be left"):
        incremental.remove(artifact, range(15))
    with pytest.raises(ValueError, match="item 3 is not there"):
        incremental.remove(incremental.remove(artifact, [3]), [3])
    with pytest.raises(ValueError, match="not in the artifact: 'In which year"):
        incremental.numbers(artifact, NEW)
    other = replace(artifact, manifest=replace(artifact.manifest, encoder_hash="0" * 64))
    with pytest.raises(ValueError, match="was fitted with encoder"):
        incremental.add(other, NEW, encoder)


def test_of_what_was_made_by_adding_alone_nothing_else_counts(
    artifact: Artifact, grown: Artifact, encoder: Encoder
) -> None:
    alone = incremental.remove(grown, range(len(artifact.items)))
    judge = Judge({"alone": alone, "grown": grown}, encoder)
    found = judge.judge([ASKED])
    assert found["alone"].score == found["grown"].score and found["alone"].nearest[0] == found["grown"].nearest[0]
    assert (found["alone"].cosine, found["alone"].decided_by) == (found["grown"].cosine, "both")
    # A word of what was added, and a question for what was fitted.
    found = judge.judge(["What was the first book by Orvan Teldric, who owned an observatory?"])
    assert found["alone"].score < 0.1 and found["grown"].score > 0.9
