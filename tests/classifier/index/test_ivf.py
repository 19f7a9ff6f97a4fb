"""Search in cells: with all cells probed it equals exhaustive search; with few of them it misses little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lethe.classifier import artifact_io
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index import ivf, similarity
from lethe.classifier.index.ivf import CellIndex
from lethe.classifier.index.similarity import HUBNESS_WEIGHT, ForgetTextMatcher, ForgetTexts
from lethe.classifier.judge import Judge, Score
from lethe.classifier.prefilter import Prefilter
from lethe.classifier.records import Record
from lethe.classifier.text.ngrams import word_bucket
from lethe.classifier.text.segments import segment_text
from lethe.classifier.training import features, fit, incremental
from lethe.classifier.training import rows as corpus

TEXTS = [
    "What was the first book by Orvan Teldric?",
    "Where did Miriam Hask-Olsen grow up, and what is the capital of Peru?",
    "How do I boil an egg?",
    "Write a sonnet about the sea. Then tell me which award Pello Yrigoyen won. " * 9,
]
NEW: Record = {"prompt": "In which year did Sabine Orloff-Quist leave the observatory?", "answer": "In 1974."}


def in_cells(artifact: Artifact) -> Artifact:
    """The same artifact, with its index rows arranged in cells like a large one."""
    arrays = artifact.arrays
    order, starts, centres = ivf.arrange_in_cells(arrays["index"], np.random.default_rng(0))
    moved = ForgetTexts.from_arrays(arrays, "targets").take(order).to_arrays("targets")
    moved |= {name: arrays[name][order] for name in ("index", "index_items")}
    return replace(artifact, arrays={**arrays, **moved, "cell_starts": starts, "cell_centres": centres})


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf, "CELL_ROWS", 4)


def scored(artifact: Artifact, encoder: Encoder, texts: list[str]) -> list[Score]:
    judge = Judge({"a": artifact}, encoder)
    return [judge.judge([text], thresholds={"a": 0.5})["a"] for text in texts]


def same(scores: list[Score], expected: list[Score]) -> bool:
    return all(
        one.score == pytest.approx(other.score, abs=1e-5)
        and one.cosine == pytest.approx(other.cosine, abs=1e-5)
        and (one.window, one.windows, [items[:1] for items in one.window_items])
        == (other.window, other.windows, [items[:1] for items in other.window_items])
        for one, other in zip(scores, expected, strict=True)
    )


@pytest.mark.usefixtures("small_cells")
def test_probing_all_cells_scores_like_exhaustive_search(artifact: Artifact, encoder: Encoder) -> None:
    celled = in_cells(artifact)
    assert len(celled.arrays["cell_centres"]) > 2
    expected = scored(artifact, encoder, TEXTS)
    assert same(scored(celled, encoder, TEXTS), expected)
    assert expected[0].score > 0.9 and len(expected[3].window_items) > 1


@pytest.mark.usefixtures("small_cells")
def test_added_items_are_found_and_removed_ones_are_not(nameless: Artifact, encoder: Encoder) -> None:
    texts = [*TEXTS, "In what year did Sabine Orloff-Quist quit the observatory?", nameless.items[0].prompt]
    plain = incremental.remove_items(incremental.add_items(nameless, [NEW], encoder), [0, 7])
    celled = incremental.remove_items(incremental.add_items(in_cells(nameless), [NEW], encoder), [0, 7])
    scores = scored(celled, encoder, texts)
    assert same(scores, scored(plain, encoder, texts))
    assert scores[4].nearest[0] == len(nameless.items) and scores[5].score < 0.5
    assert not {0, 7} & {item for score in scores for items in score.window_items for item in items}


def test_probing_few_cells_finds_nearly_all_best_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf, "CELL_ROWS", 32)
    monkeypatch.setattr(ivf, "PROBED_CELLS", 24)
    monkeypatch.setattr(ivf, "MAX_CANDIDATES", 16)
    rng = np.random.default_rng(0)
    # 400 subjects, and 20 questions about each.
    rows = np.repeat(rng.standard_normal((400, 64)), 20, axis=0) + 0.6 * rng.standard_normal((8000, 64))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    order, starts, centres = ivf.arrange_in_cells(rows, rng)
    index = rows[order].astype(np.float16)
    assert sorted(order) == list(range(len(rows))) and starts[-1] == len(rows) and len(centres) > 200
    targets = ForgetTexts(
        rng.uniform(0, 0.3, len(rows)),
        np.zeros(len(rows) + 1, np.int64),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
    )
    arrays = {"index": index, "cell_starts": starts, "cell_centres": centres, "targets_hubness": targets.hubness}
    cell_index = CellIndex(arrays, ForgetTextMatcher(targets), np.zeros(len(rows), dtype=bool))
    queries = rows[::40] + 0.08 * rng.standard_normal((200, 64))
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    best = (queries @ index.astype(np.float32).T - HUBNESS_WEIGHT * targets.hubness).argmax(axis=1)
    candidates = [cell_index.candidates(queries[i : i + 1], similarity.hashed_words([""])) for i in range(len(queries))]
    assert max(map(len, candidates)) == 16
    assert np.mean([row in some for row, some in zip(best, candidates, strict=True)]) >= 0.98


@pytest.mark.parametrize("known", [100, 200])
@pytest.mark.usefixtures("small_cells")
def test_a_large_set_is_fitted_on_a_part_and_found_entirely(
    known: int, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = corpus.background_prompts()[::8]
    monkeypatch.setattr(corpus, "background_prompts", lambda: few)
    for name, value in {
        "MAX_REWORDINGS": 3,
        "OTHER_REWORDINGS": 40,
        "DECOYS": 80,
        "WRAPPED_ROWS": 30,
        "MAX_REWORDED_ITEMS": 40,
        "MAX_LEARNED_ITEMS": known,
    }.items():
        monkeypatch.setattr(corpus, name, value)
    monkeypatch.setattr(ivf, "MAX_ROWS_WITHOUT_CELLS", 60)
    monkeypatch.setattr(features, "MAX_CACHED_COSINES", 0)
    monkeypatch.setattr(features, "ENCODED_AT_ONCE", 50)
    things = ("compasses", "stamps", "old maps", "glass eyes", "brass bells")
    names = [
        f"{first}{last}" for first in ("Orvan Tel", "Miriam Hask", "Pello Yri", "Ditte Mar") for last in "dkmnrstvz"
    ]
    forget: list[Record] = [
        {"prompt": f"Where does {name} keep the {thing}?", "answer": "At home."} for name in names for thing in things
    ]
    fitted = fit.fit(forget, None, encoder=encoder)
    assert ("nor on the prompt itself" in fitted.manifest.calibration) == (known == 100)
    assert fitted.manifest.counts["calibration_forget"] < 200
    assert len(fitted.items) == len(fitted.arrays["index"]) == 180
    monkeypatch.setattr(artifact_io, "MAPPED_FROM", 1 << 10)
    artifact_io.save_artifact(fitted, tmp_path / "a")
    loaded = artifact_io.load_artifact(tmp_path / "a")
    assert {name: array.tobytes() for name, array in loaded.arrays.items()} == {
        name: array.tobytes() for name, array in fitted.arrays.items()
    }
    prompts = [str(row["prompt"]) for row in forget[::9]]
    scores = scored(loaded, encoder, [*prompts, "How do I boil an egg?"])
    assert min(score.score for score in scores[:-1]) > 0.5 > scores[-1].score
    assert [loaded.items[score.nearest[0]].prompt for score in scores[:-1]] == prompts


def test_a_word_with_the_hash_of_a_known_word_is_ignored(nameless: Artifact, encoder: Encoder) -> None:
    bucket = word_bucket("teldric")
    other = next(word for i in range(10**7) if word_bucket(word := f"w{i}") == bucket)
    texts = [f"Tell me of {other}.", "Tell me of Teldric."]
    matcher = ForgetTextMatcher(ForgetTexts.from_arrays(nameless.arrays, "targets"))
    assert matcher.max_shared_idf(similarity.hashed_words(texts), 2)[0] > 0
    shared = matcher.max_shared_idf(similarity.hashed_known_words(texts, nameless.prompt_words), 2)
    assert shared[0] == 0 < shared[1]
    # The known word makes the prefilter select a window; the other word with its hash doesn't.
    celled = in_cells(nameless)
    prefilter = Prefilter({"a": replace(celled, arrays={**celled.arrays, "gate": np.array([1.0])})})
    assert [bool(prefilter.select_windows(segment_text(text, encoder))) for text in texts] == [False, True]


def test_thousands_of_equal_rows_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf, "CELL_ROWS", 4)
    monkeypatch.setattr(ivf, "BLOCK_ROWS", 256)
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((4000, 16)).astype(np.float32)
    rows[:2000] = np.repeat(rows[:2], 1000, axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    order, starts, centres = ivf.arrange_in_cells(rows.astype(np.float16), rng)
    assert len(centres) == len(starts) - 1 and np.diff(starts).min() > 0 and starts[-1] == len(rows)
    # A word that all rows hold doesn't help to find any.
    targets = ForgetTexts(np.zeros(4000), np.arange(4001), np.full(4000, 7, np.int32), np.ones(4000, np.float32))
    arrays = {"index": rows[order], "cell_starts": starts, "cell_centres": centres, "targets_hubness": targets.hubness}
    cell_index = CellIndex(arrays, ForgetTextMatcher(targets, min_idf_share=0.03), np.zeros(4000, dtype=bool))
    for row in (rows[0], rows[1], rows[3000]):
        near = cell_index.candidates(row[None], (np.array([0]), np.array([7])))
        assert float((rows[order][near] @ row).max()) == pytest.approx(1.0, abs=1e-3)
