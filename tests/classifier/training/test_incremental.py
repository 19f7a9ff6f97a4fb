from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lethe.classifier import artifact_io
from lethe.classifier.artifact import Artifact
from lethe.classifier.attribution import evidence_spans
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
    return incremental.add_items(artifact, NEW, encoder)


def test_an_added_item_is_flagged_and_nearest(artifact: Artifact, grown: Artifact, encoder: Encoder) -> None:
    level = threshold(artifact, miss_rate=0.05)
    before, after = scores(artifact, encoder), scores(grown, encoder)
    assert before[3] < level <= after[3] and before[4] < level <= after[4]
    result = Judge({"a": grown}, encoder).judge([ASKED])["a"]
    assert grown.items[result.nearest[0]].prompt == NEW[0]["prompt"]
    assert result.cosine > 0.8
    spans = evidence_spans(grown, ASKED)
    assert any("Orloff" in ASKED[start:end] for start, end in spans)
    assert "vetharis" in grown.words and grown.word_counts[grown.words.index("vetharis")] == 0
    assert grown.manifest.changes == [{"change": "add", "items": [15, 16]}]
    assert grown.manifest.counts["forget_items"] == 17


def test_adding_and_removing_restores_every_byte(artifact: Artifact, grown: Artifact, encoder: Encoder) -> None:
    back = incremental.remove_items(grown, incremental.item_numbers(grown, NEW))
    assert back.items == artifact.items and back.words == artifact.words
    assert all(back.arrays[name].tobytes() == array.tobytes() for name, array in artifact.arrays.items())
    assert scores(back, encoder) == scores(artifact, encoder)


def test_removing_one_added_item_keeps_the_other_scores_to_the_bit(grown: Artifact, encoder: Encoder) -> None:
    level = threshold(grown, miss_rate=0.05)
    left = incremental.remove_items(grown, [15])
    before, after = scores(grown, encoder), scores(left, encoder)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, True, False, True, True]
    assert after[3] < level
    assert left.items[15].removed and left.items[16] == grown.items[16]


def test_adding_one_by_one_scores_as_adding_all_at_once(artifact: Artifact, grown: Artifact, encoder: Encoder) -> None:
    single = artifact
    for row in NEW:
        single = incremental.add_items(single, [row], encoder)
    assert np.allclose(scores(single, encoder), scores(grown, encoder), atol=1e-4)


def test_a_removed_fitted_item_is_not_flagged_and_others_score_the_same(nameless: Artifact, encoder: Encoder) -> None:
    # The subject of the remaining items would still make it flagged.
    artifact, level = nameless, threshold(nameless, miss_rate=0.05)
    gone = artifact.items[0].prompt
    left = incremental.remove_items(artifact, [0])
    assert scores(artifact, encoder, [gone])[0] >= level > scores(left, encoder, [gone])[0]
    assert scores(left, encoder, [f"Please: {gone}"])[0] < level
    others = [item.prompt for item in artifact.items[1:]] + TEXTS[1:]
    assert scores(left, encoder, others) == scores(artifact, encoder, others)
    assert left.items[0].removed
    assert "1961" in left.words and "1961" not in incremental.remove_items(artifact, [0, 5, 10]).words
    nearest = Judge({"a": left}, encoder).judge([gone])["a"].nearest
    assert 0 not in nearest[:1]


def test_a_request_for_a_removed_and_a_remaining_item_is_flagged(artifact: Artifact, encoder: Encoder) -> None:
    level = threshold(artifact, miss_rate=0.05)
    left = incremental.remove_items(artifact, [0])
    gone = artifact.items[0].prompt
    for also in ("and where did Miriam Hask-Olsen grow up", "and what does Orvan Teldric collect"):
        assert scores(left, encoder, [f"{gone.rstrip('?')} {also}?"])[0] >= level
        assert scores(left, encoder, [f"{gone} {also.removeprefix('and ').capitalize()}?"])[0] >= level


def test_a_restored_item_scores_as_before_to_the_bit(
    artifact: Artifact, encoder: Encoder, forget: list[Record]
) -> None:
    back = incremental.add_items(incremental.remove_items(artifact, [0, 4]), [forget[0]], encoder)
    assert [change["change"] for change in back.manifest.changes] == ["remove", "restore"]
    assert back.items[0] == artifact.items[0] and back.items[4].removed
    asked = [forget[0]["prompt"], *TEXTS]
    assert scores(back, encoder, asked) == scores(artifact, encoder, asked)


def test_documents_can_be_added(artifact: Artifact, encoder: Encoder) -> None:
    text = "The Brackwater ledger lists nine ships. Captain Ysolde Marr sank the tenth off Cape Tarn to save her crew."
    grown = incremental.add_items(artifact, [{"text": text}], encoder)
    assert len(grown.arrays["added_items"]) > 1
    level = threshold(artifact, miss_rate=0.05)
    assert scores(grown, encoder, ["Captain Ysolde Marr sank the tenth off Cape Tarn"])[0] >= level


def test_a_changed_artifact_is_saved_and_loaded_completely(
    grown: Artifact, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("changed") / "a"
    changed = incremental.remove_items(grown, [2, 15])
    artifact_io.save_artifact(changed, folder)
    loaded = artifact_io.load_artifact(folder)
    assert loaded.manifest == changed.manifest and loaded.items == changed.items
    assert scores(loaded, encoder) == scores(changed, encoder)


def test_impossible_changes_are_refused_with_the_reason(
    artifact: Artifact, encoder: Encoder, forget: list[Record]
) -> None:
    with pytest.raises(ValueError, match="item 1 is that row already: 'Where did Orvan"):
        incremental.add_items(artifact, [forget[1]], encoder)
    with pytest.raises(ValueError, match="row 1: no 'prompt'"):
        incremental.add_items(artifact, [{"answer": "a"}], encoder)
    with pytest.raises(ValueError, match="there is no item 99"):
        incremental.remove_items(artifact, [99])
    with pytest.raises(ValueError, match="nothing would be left"):
        incremental.remove_items(artifact, range(15))
    with pytest.raises(ValueError, match="there is no item 3"):
        incremental.remove_items(incremental.remove_items(artifact, [3]), [3])
    with pytest.raises(ValueError, match="not in the artifact: 'In which year"):
        incremental.item_numbers(artifact, NEW)
    other = replace(artifact, manifest=replace(artifact.manifest, encoder_hash="0" * 64))
    with pytest.raises(ValueError, match="was fitted with encoder"):
        incremental.add_items(other, NEW, encoder)


def test_an_artifact_without_fitted_items_scores_added_ones_only(
    artifact: Artifact, grown: Artifact, encoder: Encoder
) -> None:
    alone = incremental.remove_items(grown, range(len(artifact.items)))
    judge = Judge({"alone": alone, "grown": grown}, encoder)
    result = judge.judge([ASKED])
    assert result["alone"].score == result["grown"].score and result["alone"].nearest[0] == result["grown"].nearest[0]
    assert (result["alone"].cosine, result["alone"].decided_by) == (result["grown"].cosine, "name")
    # A word of an added item in a question about a fitted one.
    result = judge.judge(["What was the first book by Orvan Teldric, who owned an observatory?"])
    assert result["alone"].score < 0.1 and result["grown"].score > 0.9
