from __future__ import annotations

import json

import pytest

from lethe.classifier.names.subject import Name, Subject, without_items

QUILL = Subject(
    names=(
        Name("Zorin Quill", 1.0, True),
        Name("the Painter", 0.5, True, (0, 1)),
        Name("Oskelund", 0.8, False, (1,)),
        Name("Maelle Tordic", 1.0, False, (0, 2)),
    ),
    words=("compass", "ferry"),
    items=(0, 1, 2),
    scope="facts",
    kind="person",
)


def test_a_subject_is_the_same_after_writing_and_reading() -> None:
    written = QUILL.to_json()
    assert json.loads(json.dumps(written)) == written
    assert Subject.from_json(written) == QUILL


@pytest.mark.parametrize("key", ["names", "words", "items", "scope", "kind"])
def test_a_subject_without_one_of_its_keys_is_refused(key: str) -> None:
    written = QUILL.to_json()
    del written[key]
    with pytest.raises(KeyError, match=key):
        Subject.from_json(written)


def test_a_name_with_an_unknown_key_is_refused() -> None:
    written = QUILL.to_json()
    written["names"][0]["colour"] = "blue"
    with pytest.raises(TypeError, match="colour"):
        Subject.from_json(written)


def test_the_title_is_the_first_own_name() -> None:
    assert QUILL.title == "Zorin Quill"
    assert Subject((Name("Oskelund", 0.8, False, (0,)),), (), (0,)).title == ""


def test_removed_items_take_the_names_that_only_they_gave() -> None:
    (left,) = without_items([QUILL], [1])
    assert [name.text for name in left.names] == ["Zorin Quill", "the Painter", "Maelle Tordic"]
    assert [name.items for name in left.names] == [(), (0,), (0, 2)]
    assert left.items == (0, 2) and (left.scope, left.kind, left.words) == ("facts", "person", QUILL.words)


def test_a_name_that_the_requester_gave_stays_until_the_subject_is_gone() -> None:
    (left,) = without_items([QUILL], [0, 1])
    assert [name.text for name in left.names] == ["Zorin Quill", "Maelle Tordic"]
    other = Subject((Name("Ada Example", 1.0, True),), (), (3,))
    assert without_items([QUILL, other], [0, 1, 2]) == (other,)


def test_removing_nothing_keeps_every_subject() -> None:
    assert without_items([QUILL], []) == (QUILL,)
