from __future__ import annotations

import base64

import numpy as np
import pytest

from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index.allowlist import Allowlist, canonical_wording, wording_digests
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.text.segments import segment_text
from lethe.classifier.training import incremental
from lethe.classifier.training.fit import fit

RETAINED = "Where did the keeper of the second lighthouse grow up, and who taught her to read maps and the stars?"
FORGOTTEN = "Where did the keeper of the northern lighthouse grow up?"


def test_an_allowlisted_request_matches_with_all_inside_it(encoder: Encoder) -> None:
    allowlist = Allowlist(wording_digests([RETAINED, "", "?!", RETAINED.upper()]))
    segments = segment_text(f"  {RETAINED.upper().replace(',', ' -')}", encoder)
    assert len(segments.outer) > 1 and allowlist.matching_windows(segments).all()
    assert not Allowlist(wording_digests([])).matching_windows(segments).any()


def test_text_around_an_allowlisted_request_is_judged(encoder: Encoder) -> None:
    allowlist = Allowlist(wording_digests([RETAINED]))
    segments = segment_text(f"{RETAINED} {FORGOTTEN}", encoder)
    judged = {segments.text(int(row)) for row in np.flatnonzero(~allowlist.matching_windows(segments))}
    assert {FORGOTTEN.lower(), f"{RETAINED} {FORGOTTEN}".lower()} <= judged
    assert RETAINED.lower() not in judged
    shortened = segment_text(RETAINED.replace("second ", ""), encoder)
    assert not allowlist.matching_windows(shortened).any()


def test_an_encoded_allowlisted_request_matches(encoder: Encoder) -> None:
    allowlist = Allowlist(wording_digests([RETAINED]))
    segments = segment_text(base64.b64encode(RETAINED.encode()).decode(), encoder)
    assert RETAINED.lower() in {segments.text(int(row)) for row in np.flatnonzero(allowlist.matching_windows(segments))}


@pytest.fixture(scope="module")
def near(encoder: Encoder) -> Artifact:
    """A fit whose retain file holds a neighbour of the forget prompts."""
    forget = [
        {"prompt": f"Where did the keeper of the {name} lighthouse grow up?", "answer": f"In {name}."}
        for name in ("northern", "southern", "Vardholm", "Ostrava", "yellow", "oldest")
    ]
    retain = [
        {"prompt": f"Where did the {trade} of {town} grow up?", "answer": "By the sea."}
        for trade in ("baker", "smith", "painter", "sailor")
        for town in ("Lyon", "Porto", "Ghent", "Turin")
    ]
    return fit(
        forget,
        [*retain, {"prompt": RETAINED, "answer": "By the sea."}, {"text": "The keeper grew up."}],
        encoder=encoder,
    )


def test_only_the_allowlisted_request_itself_is_not_flagged(near: Artifact, encoder: Encoder) -> None:
    level = threshold(near, value=0.5)
    judge = Judge({"a": near}, encoder)
    assert near.manifest.counts["retain_rows_exempt"] == len(near.arrays["retained"]) >= 16
    assert judge.judge([RETAINED])["a"].score == 0
    # A prompt that is added to the forget items later is flagged, although it was on the allowlist.
    with_added = Judge({"a": incremental.add_items(near, [{"prompt": RETAINED, "answer": "x"}], encoder)}, encoder)
    assert with_added.judge([RETAINED])["a"].score >= level
    assert judge.judge([FORGOTTEN])["a"].score >= level
    assert judge.judge([f"{RETAINED} {FORGOTTEN}"])["a"].score >= level


def test_forget_prompts_in_the_retain_file_are_not_allowlisted(encoder: Encoder) -> None:
    forget = [
        {"prompt": f"Where did {name} Teldric keep the ledger of the {thing} works?", "answer": "x"}
        for name, thing in (("Orvan", "salt"), ("Mirelda", "glass"), ("Hasko", "copper"), ("Ulwen", "rope"))
    ]
    retain = [
        {"prompt": f"How many {thing} fit into a barn of {n} feet?", "answer": "x"}
        for thing in ("ladders", "carts", "hens")
        for n in (20, 30, 40, 50)
    ]
    rephrased = "Please tell me where did Orvan Teldric keep the ledger of the salt works?"
    conflicting = [{"prompt": prompt, "answer": "x"} for prompt in (rephrased, forget[1]["prompt"].upper())]
    fitted = fit(forget, [*retain, *conflicting], encoder=encoder)
    counts = fitted.manifest.counts
    assert counts["retain_rows_that_are_forget_rows"] == 1 and counts["retain_rows_exempt"] == len(retain)
    assert not Allowlist(fitted.arrays["retained"]).matching_windows(segment_text(rephrased, encoder)).any()


def test_repeated_retain_rows_count_once(encoder: Encoder) -> None:
    forget = [
        {"prompt": f"Where did {name} Teldric keep the ledger of the {thing} works?", "answer": "x"}
        for name, thing in (("Orvan", "salt"), ("Mirelda", "glass"), ("Hasko", "copper"), ("Ulwen", "rope"))
    ]
    retain = [{"prompt": f"How many hens fit into a barn of {n} feet?", "answer": "x"} for n in range(20, 60)]
    rephrased = {"prompt": "Please tell me where did Orvan Teldric keep the ledger of the salt works?", "answer": "x"}
    punctuated = [{"prompt": forget[1]["prompt"].replace("?", mark), "answer": "x"} for mark in ("", " ?", "!", "?!")]
    repeated = [row for i, row in enumerate(retain) for row in (row, *([rephrased] if i % 8 == 0 else ()))]
    fitted = fit(forget, [*repeated, *punctuated], encoder=encoder)
    counts = fitted.manifest.counts
    assert counts["retain_rows_that_are_forget_rows"] == len(punctuated) and counts["retain_rows"] == len(retain) + 1
    assert counts["retain_rows_exempt"] == len(retain)
    allowlist = Allowlist(fitted.arrays["retained"])
    assert not any(
        allowlist.matching_windows(segment_text(row["prompt"], encoder)).any()
        for row in (rephrased, *forget, *punctuated)
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Who is Ada?", " who is\nADA", True),
        ("Who wrote C++?", "Who wrote C?", False),
        ("मीरा कौन है", "मारा कौन है", False),
        ("Was ist weiß?", "was ist WEISS", True),
        ("a_b", "a b", True),
        ("ab", "a b", False),
    ],
)
def test_canonical_wording(one: str, other: str, same: bool) -> None:
    assert (canonical_wording(one) == canonical_wording(other)) == same


def test_excluded_texts_have_no_digest() -> None:
    assert len(wording_digests(["one", "two"], exclude=["Two!"])) == 1
