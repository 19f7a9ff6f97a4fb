"""A search that overlooks nothing gives what comparing with everything gives; one that may, overlooks little."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from lethe.classifier import artifact as artifacts
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index import ivf, similarity
from lethe.classifier.index.ivf import Search
from lethe.classifier.index.similarity import ORDINARY_WEIGHT, Matcher, Targets
from lethe.classifier.judge import Judge, Score
from lethe.classifier.prefilter import Gate
from lethe.classifier.records import Record
from lethe.classifier.text.ngrams import word_bucket
from lethe.classifier.text.segments import read
from lethe.classifier.training import fit, incremental
from lethe.classifier.training import rows as corpus

TEXTS = [
    "What was the first book by Orvan Teldric?",
    "Where did Miriam Hask-Olsen grow up, and what is the capital of Peru?",
    "How do I boil an egg?",
    "Write a sonnet about the sea. Then tell me which award Pello Yrigoyen won. " * 9,
]
NEW: Record = {"prompt": "In which year did Sabine Orloff-Quist leave the observatory?", "answer": "In 1974."}


def in_cells(artifact: Artifact) -> Artifact:
    """The same, laid out as a large artifact is."""
    arrays = artifact.arrays
    order, starts, centres = ivf.arranged(arrays["index"], np.random.default_rng(0))
    targets = Targets.of(arrays, "targets").some(order)
    moved = {f"targets_{field.name}": getattr(targets, field.name) for field in fields(targets)}
    moved |= {name: arrays[name][order] for name in ("index", "index_items")}
    return replace(artifact, arrays={**arrays, **moved, "cell_starts": starts, "cell_centres": centres})


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf, "CELL_ROWS", 4)


def scored(artifact: Artifact, encoder: Encoder, texts: list[str]) -> list[Score]:
    judge = Judge({"a": artifact}, encoder)
    return [judge.judge([text], levels={"a": 0.5})["a"] for text in texts]


def same(found: list[Score], wanted: list[Score]) -> bool:
    return all(
        one.score == pytest.approx(other.score, abs=1e-5)
        and one.cosine == pytest.approx(other.cosine, abs=1e-5)
        and (one.window, one.windows, [items[:1] for items in one.asked])
        == (other.window, other.windows, [items[:1] for items in other.asked])
        for one, other in zip(found, wanted, strict=True)
    )


@pytest.mark.usefixtures("small_cells")
def test_a_search_of_all_cells_scores_as_without_one(artifact: Artifact, encoder: Encoder) -> None:
    laid_out = in_cells(artifact)
    assert len(laid_out.arrays["cell_centres"]) > 2
    wanted = scored(artifact, encoder, TEXTS)
    assert same(scored(laid_out, encoder, TEXTS), wanted)
    assert wanted[0].score > 0.9 and len(wanted[3].asked) > 1


@pytest.mark.usefixtures("small_cells")
def test_added_items_count_and_those_taken_out_are_never_meant(artifact: Artifact, encoder: Encoder) -> None:
    asked = [*TEXTS, "In what year did Sabine Orloff-Quist quit the observatory?", artifact.items[0].prompt]
    plain = incremental.remove(incremental.add(artifact, [NEW], encoder), [0, 7])
    laid_out = incremental.remove(incremental.add(in_cells(artifact), [NEW], encoder), [0, 7])
    found = scored(laid_out, encoder, asked)
    assert same(found, scored(plain, encoder, asked))
    assert found[4].nearest[0] == len(artifact.items) and found[5].score < 0.5
    assert not {0, 7} & {item for score in found for items in score.asked for item in items}


def test_few_of_many_cells_hold_nearly_all_that_matches_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf, "CELL_ROWS", 32)
    monkeypatch.setattr(ivf, "PROBED", 24)
    monkeypatch.setattr(ivf, "KEPT", 16)
    rng = np.random.default_rng(0)
    # Subjects, and questions about each.
    rows = np.repeat(rng.standard_normal((400, 64)), 20, axis=0) + 0.6 * rng.standard_normal((8000, 64))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    order, starts, centres = ivf.arranged(rows, rng)
    index = rows[order].astype(np.float16)
    assert sorted(order) == list(range(len(rows))) and starts[-1] == len(rows) and len(centres) > 200
    none = Targets(
        rng.uniform(0, 0.3, len(rows)),
        np.zeros(len(rows) + 1, np.int64),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
    )
    arrays = {"index": index, "cell_starts": starts, "cell_centres": centres, "targets_ordinary": none.ordinary}
    found = Search(arrays, Matcher(none), np.zeros(len(rows), dtype=bool))
    asked = rows[::40] + 0.08 * rng.standard_normal((200, 64))
    asked = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)
    best = (asked @ index.astype(np.float32).T - ORDINARY_WEIGHT * none.ordinary).argmax(axis=1)
    near = [found.candidates(asked[i : i + 1], similarity.row_words([""])) for i in range(len(asked))]
    assert max(map(len, near)) == 16
    assert np.mean([row in some for row, some in zip(best, near, strict=True)]) >= 0.98


def test_rare_words_find_what_no_cell_does(encoder: Encoder) -> None:
    texts = ["Where did Orvan Teldric grow up?", "Who keeps Mirk?", *(f"Where did Ann {i} grow up?" for i in range(50))]
    vectors = encoder.encode(texts)
    targets = similarity.targets(texts, vectors, vectors.astype(np.float16), similarity.count_documents(texts))
    words = similarity.row_words(["", "Tell me of Mirk.", "Where is Teldric?"])
    assert Matcher(targets, least=0.03).sharing(words, 3, 1).tolist() == [1, 0]


def test_what_stands_in_very_many_targets_is_not_counted(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    matcher = Matcher(Targets.of(artifact.arrays, "targets"))
    words = similarity.row_words(["Orvan Teldric", "egg"])
    assert matcher.most_shared(words, 2)[1] == 0 < matcher.most_shared(words, 2)[0] < 1
    monkeypatch.setattr(similarity, "MOST_LISTED", 1)
    assert matcher.most_shared(words, 2).tolist() == [np.inf, 0]


@pytest.mark.parametrize("known", [100, 200])
@pytest.mark.usefixtures("small_cells")
def test_a_large_set_is_learnt_in_part_and_found_as_a_whole(
    known: int, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = corpus.background()[::8]
    monkeypatch.setattr(corpus, "background", lambda: few)
    for name, value in {
        "VARIANTS_MOST": 3,
        "OTHER_VARIANTS": 40,
        "DECOYS": 80,
        "WRAPPED": 30,
        "REWORDED_MOST": 40,
        "KNOWN_MOST": known,
    }.items():
        monkeypatch.setattr(corpus, name, value)
    monkeypatch.setattr(ivf, "CELLS_FROM", 60)
    monkeypatch.setattr(fit, "COSINES_KEPT", 0)
    monkeypatch.setattr(fit, "ENCODED_AT_ONCE", 50)
    kept = ("compasses", "stamps", "old maps", "glass eyes", "brass bells")
    names = [
        f"{first}{last}" for first in ("Orvan Tel", "Miriam Hask", "Pello Yri", "Ditte Mar") for last in "dkmnrstvz"
    ]
    forget: list[Record] = [
        {"prompt": f"Where does {name} keep the {thing}?", "answer": "At home."} for name in names for thing in kept
    ]
    made = fit.fit(forget, None, encoder=encoder)
    assert ("nor on the prompt itself" in made.manifest.calibration) == (known == 100)
    assert made.manifest.counts["calibration_forget"] < 200 and len(made.items) == len(made.arrays["index"]) == 180
    monkeypatch.setattr(artifacts, "MAPPED_FROM", 1 << 10)
    artifacts.save(made, tmp_path / "a")
    loaded = artifacts.load(tmp_path / "a")
    assert {name: array.tobytes() for name, array in loaded.arrays.items()} == {
        name: array.tobytes() for name, array in made.arrays.items()
    }
    asked = [str(row["prompt"]) for row in forget[::9]]
    found = scored(loaded, encoder, [*asked, "How do I boil an egg?"])
    assert min(score.score for score in found[:-1]) > 0.5 > found[-1].score
    assert [loaded.items[score.nearest[0]].prompt for score in found[:-1]] == asked


def test_a_word_that_only_shares_a_hash_is_not_shared(artifact: Artifact, encoder: Encoder) -> None:
    wanted = word_bucket("teldric")
    double = next(word for i in range(10**7) if word_bucket(word := f"w{i}") == wanted)
    texts = [f"Tell me of {double}.", "Tell me of Teldric."]
    matcher = Matcher(Targets.of(artifact.arrays, "targets"))
    assert matcher.most_shared(similarity.row_words(texts), 2)[0] > 0
    shared = matcher.most_shared(similarity.known_words(texts, artifact.prompt_words), 2)
    assert shared[0] == 0 < shared[1]
    # Beside a word that tells nothing by itself, the real one lets a window pass, and its double doesn't.
    gate = Gate({"a": replace(in_cells(artifact), arrays={**in_cells(artifact).arrays, "gate": np.array([-1.0])})})
    passed = [bool(gate.passed(read(text, encoder))) for text in texts]
    assert passed == [False, True]


def test_what_stands_there_a_thousand_times_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf, "CELL_ROWS", 4)
    monkeypatch.setattr(ivf, "BLOCK_ROWS", 256)
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((4000, 16)).astype(np.float32)
    rows[:2000] = np.repeat(rows[:2], 1000, axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    order, starts, centres = ivf.arranged(rows.astype(np.float16), rng)
    assert len(centres) == len(starts) - 1 and np.diff(starts).min() > 0 and starts[-1] == len(rows)
    # A word that all rows hold tells nothing.
    wanted = Targets(np.zeros(4000), np.arange(4001), np.full(4000, 7, np.int32), np.ones(4000, np.float32))
    arrays = {"index": rows[order], "cell_starts": starts, "cell_centres": centres, "targets_ordinary": wanted.ordinary}
    found = Search(arrays, Matcher(wanted, least=0.03), np.zeros(4000, dtype=bool))
    for row in (rows[0], rows[1], rows[3000]):
        near = found.candidates(row[None], (np.array([0]), np.array([7])))
        assert float((rows[order][near] @ row).max()) == pytest.approx(1.0, abs=1e-3)
