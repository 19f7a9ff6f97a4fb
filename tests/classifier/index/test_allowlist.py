from __future__ import annotations

import base64

import numpy as np
import pytest

from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index.allowlist import Retained, digests, wording
from lethe.classifier.judge import Judge, threshold
from lethe.classifier.text.segments import read
from lethe.classifier.training import incremental
from lethe.classifier.training.fit import fit

KEPT = "Where did the keeper of the second lighthouse grow up, and who taught her to read maps and the stars?"
ASKED = "Where did the keeper of the northern lighthouse grow up?"


def test_a_retained_request_is_known_by_its_words_alone_and_with_all_that_lies_inside_it(encoder: Encoder) -> None:
    retained = Retained(digests([KEPT, "", "?!", KEPT.upper()]))
    reading = read(f"  {KEPT.upper().replace(',', ' -')}", encoder)
    assert len(reading.own) > 1 and retained.within(reading).all()
    assert not Retained(digests([])).within(reading).any()


def test_what_stands_around_it_and_the_whole_of_both_is_judged(encoder: Encoder) -> None:
    retained = Retained(digests([KEPT]))
    reading = read(f"{KEPT} {ASKED}", encoder)
    open_rows = {reading.text(int(row)) for row in np.flatnonzero(~retained.within(reading))}
    assert {ASKED.lower(), f"{KEPT} {ASKED}".lower()} <= open_rows
    assert KEPT.lower() not in open_rows
    fewer = read(KEPT.replace("second ", ""), encoder)
    assert not retained.within(fewer).any()


def test_it_is_found_under_a_disguise(encoder: Encoder) -> None:
    retained = Retained(digests([KEPT]))
    reading = read(base64.b64encode(KEPT.encode()).decode(), encoder)
    assert KEPT.lower() in {reading.text(int(row)) for row in np.flatnonzero(retained.within(reading))}


@pytest.fixture(scope="module")
def near(encoder: Encoder) -> Artifact:
    """A fit whose retain file holds a neighbour of what is forgotten, and that itself in other words."""
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
        forget, [*retain, {"prompt": KEPT, "answer": "By the sea."}, {"text": "The keeper grew up."}], encoder=encoder
    )


def test_a_retained_request_is_not_flagged_and_the_same_words_elsewhere_are(near: Artifact, encoder: Encoder) -> None:
    level = threshold(near, value=0.5)
    judge = Judge({"a": near}, encoder)
    assert near.manifest.counts["retain_rows_exempt"] == len(near.arrays["retained"]) >= 16
    assert judge.judge([KEPT])["a"].score == 0
    # What is added later to be forgotten is flagged, also where it was to be kept before.
    more = Judge({"a": incremental.add(near, [{"prompt": KEPT, "answer": "x"}], encoder)}, encoder)
    assert more.judge([KEPT])["a"].score >= level
    assert judge.judge([ASKED])["a"].score >= level
    assert judge.judge([f"{KEPT} {ASKED}"])["a"].score >= level


def test_a_retain_file_that_holds_what_is_forgotten_opens_no_way_to_it(encoder: Encoder) -> None:
    forget = [
        {"prompt": f"Where did {name} Teldric keep the ledger of the {thing} works?", "answer": "x"}
        for name, thing in (("Orvan", "salt"), ("Mirelda", "glass"), ("Hasko", "copper"), ("Ulwen", "rope"))
    ]
    retain = [
        {"prompt": f"How many {thing} fit into a barn of {n} feet?", "answer": "x"}
        for thing in ("ladders", "carts", "hens")
        for n in (20, 30, 40, 50)
    ]
    meant = "Please tell me where did Orvan Teldric keep the ledger of the salt works?"
    meant_too = [{"prompt": prompt, "answer": "x"} for prompt in (meant, forget[1]["prompt"].upper())]
    found = fit(forget, [*retain, *meant_too], encoder=encoder)
    counts = found.manifest.counts
    assert counts["retain_rows_that_are_forget_rows"] == 1 and counts["retain_rows_exempt"] == len(retain)
    assert not Retained(found.arrays["retained"]).within(read(meant, encoder)).any()


def test_what_stands_in_a_retain_file_again_and_again_is_no_better_known(encoder: Encoder) -> None:
    forget = [
        {"prompt": f"Where did {name} Teldric keep the ledger of the {thing} works?", "answer": "x"}
        for name, thing in (("Orvan", "salt"), ("Mirelda", "glass"), ("Hasko", "copper"), ("Ulwen", "rope"))
    ]
    retain = [{"prompt": f"How many hens fit into a barn of {n} feet?", "answer": "x"} for n in range(20, 60)]
    meant = {"prompt": "Please tell me where did Orvan Teldric keep the ledger of the salt works?", "answer": "x"}
    punctuated = [{"prompt": forget[1]["prompt"].replace("?", mark), "answer": "x"} for mark in ("", " ?", "!", "?!")]
    often = [row for i, row in enumerate(retain) for row in (row, *([meant] if i % 8 == 0 else ()))]
    found = fit(forget, [*often, *punctuated], encoder=encoder)
    counts = found.manifest.counts
    assert counts["retain_rows_that_are_forget_rows"] == len(punctuated) and counts["retain_rows"] == len(retain) + 1
    assert counts["retain_rows_exempt"] == len(retain)
    kept = Retained(found.arrays["retained"])
    assert not any(kept.within(read(row["prompt"], encoder)).any() for row in (meant, *forget, *punctuated))


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
def test_which_requests_are_the_same(one: str, other: str, same: bool) -> None:
    assert (wording(one) == wording(other)) == same


def test_what_must_not_be_kept_is_not() -> None:
    assert len(digests(["one", "two"], besides=["Two!"])) == 1
