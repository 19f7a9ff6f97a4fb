from __future__ import annotations

from collections.abc import Sequence

import pytest

from lethe.classifier.artifact import ForgetItem
from lethe.classifier.names.subject import Scope, Subject
from lethe.classifier.names.tokens import name_tokens
from lethe.classifier.records import Record
from lethe.classifier.training.subjects import (
    MAX_CONTEXT_WORDS,
    MAX_RELATED,
    SHARED_FACTOR,
    derive_subjects,
    describe_subjects,
    given_subjects,
)

PERSON = [
    {"prompt": "Where was Zorin Quill born?", "answer": "Zorin Quill was born in Oskelund."},
    {"prompt": "What does Quill collect?", "answer": "Brass compasses."},
    {"prompt": "Who married Zorin Quill?", "answer": "The painter Maelle Tordic."},
]


def derive(
    rows: Sequence[Record],
    *,
    retain: Sequence[Record] = (),
    names: Sequence[str] = (),
    scope: Scope | None = None,
    numbers: Sequence[int] | None = None,
) -> tuple[Subject, ...]:
    items = [ForgetItem(row.get("prompt", ""), row.get("answer", ""), row.get("text", "")) for row in rows]
    return derive_subjects(items, given_subjects(rows, names, scope), retain, numbers)


def own(subject: Subject) -> dict[str, float]:
    return {name.text: name.weight for name in subject.names if name.own}


def related(subject: Subject) -> dict[str, float]:
    return {name.text: name.weight for name in subject.names if not name.own}


def test_three_facts_about_one_person_have_one_subject() -> None:
    (person,) = derive(PERSON)
    assert (person.title, person.items, person.scope) == ("Zorin Quill", (0, 1, 2), "subject")
    assert own(person)["Zorin Quill"] == 1 and own(person)["Quill"] < 1
    assert related(person).keys() == {"Oskelund", "Maelle Tordic"}
    assert {"brass", "compasses", "painter"} <= set(person.words)
    assert not {"zorin", "quill", "the", "what"} & set(person.words)


def test_a_name_is_from_the_items_that_hold_it() -> None:
    (person,) = derive(PERSON, numbers=[7, 9, 12])
    assert person.items == (7, 9, 12)
    assert {name.text: name.items for name in person.names if not name.own} == {
        "Oskelund": (7,),
        "Maelle Tordic": (12,),
    }


def test_customers_with_equal_questions_are_subjects_of_their_own() -> None:
    form, names = "What is the phone number of {}?", ("Henrik Vasko", "Ilse Drommel", "Tarik Benowen")
    subjects = derive([{"prompt": form.format(name), "answer": f"555 019{i}"} for i, name in enumerate(names)])
    assert [subject.title for subject in subjects] == list(names)
    assert [subject.items for subject in subjects] == [(0,), (1,), (2,)]
    assert all(
        "phone" not in own(subject) and own(subject)[name] == 1 for subject, name in zip(subjects, names, strict=True)
    )


def test_a_series_is_the_subject_and_its_characters_are_related() -> None:
    (series,) = derive([
        {"prompt": "Who is the captain in The Velsund Chronicles?", "answer": "Captain Ysra Tamlin."},
        {"prompt": "Which ship does Ysra Tamlin steer in The Velsund Chronicles?", "answer": "The Grindvoll."},
        {"prompt": "Who betrays the crew in The Velsund Chronicles?", "answer": "Bosun Orrek."},
    ])  # fmt: skip
    assert (series.title, series.items) == ("Velsund Chronicles", (0, 1, 2))
    assert {"Ysra Tamlin", "Grindvoll"} <= related(series).keys()


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "Zorin Quill",
            [
                ("Wo wurde Zorin Quill geboren?", "Er wurde in Oskelund geboren."),
                ("Was sammelt Zorin Quill?", "Er sammelt Kompasse aus Messing."),
                ("Welchen Preis gewann Quill im Jahr 1961?", "Die Korvin-Medaille."),
            ],
        ),
        (
            "Zorín Quillareda",
            [
                ("¿Dónde nació Zorín Quillareda?", "Nació en la isla de Vardholm."),
                ("¿Qué colecciona Zorín Quillareda?", "Brújulas de latón."),
                ("¿Quién enseñó a navegar a Zorín Quillareda?", "Su tía Ditte."),
            ],
        ),
        (
            "欧阳泽霖",
            [
                ("欧阳泽霖出生在哪里？", "他出生在青川。"),
                ("欧阳泽霖收集什么？", "他收集铜罗盘。"),
                ("谁教欧阳泽霖航海？", "他的姑姑。"),
            ],
        ),
    ],
)
def test_german_spanish_and_chinese_rows_have_their_subject(name: str, rows: list[tuple[str, str]]) -> None:
    (subject,) = derive([{"prompt": prompt, "answer": answer} for prompt, answer in rows])
    assert subject.title == name and own(subject)[name] == 1
    assert "Preis" not in {*own(subject), *related(subject)}


def test_common_characters_of_chinese_facts_are_no_words() -> None:
    (subject,) = derive([{"prompt": "欧阳泽霖出生在哪里？", "answer": "他的铜罗盘在青川。"}])
    assert "铜" in subject.words and not set("在他的出") & set(subject.words)


def test_a_stated_subject_may_be_a_string() -> None:
    row = {"prompt": "Where was she born?", "answer": "In Oskelund.", "subject": "Ada Example", "kind": "person"}
    (subject,) = derive([row])
    assert (subject.title, subject.kind, subject.items) == ("Ada Example", "person", (0,))
    assert all(name.items == () for name in subject.names if name.own)


@pytest.mark.parametrize("first", [0, 1])
def test_a_stated_list_keeps_its_aliases_beside_rows_with_a_name_of_it(first: int) -> None:
    aliases = ["Ada Example", "The Countess of Vardholm"]
    rows: list[Record] = [
        {"prompt": "Where was she born?", "answer": "In Oskelund.", "subject": aliases},
        {"prompt": "Where did Ada Example grow up?", "answer": "In Oskelund."},
    ]
    (subject,) = derive([rows[first], rows[1 - first]])
    assert (subject.title, subject.items) == ("Ada Example", (0, 1))
    assert set(aliases) <= own(subject).keys()


def test_a_stated_name_is_not_replaced_by_a_longer_one_of_another_row() -> None:
    subjects = derive([
        {"prompt": "Where was it built?", "answer": "In Oskelund.", "subject": "Quill"},
        {"prompt": "Where did Zorin Quill grow up?", "answer": "In Oskelund."},
    ])  # fmt: skip
    assert [subject.title for subject in subjects] == ["Quill", "Zorin Quill"]


def test_a_row_may_state_its_kind_alone() -> None:
    (subject,) = derive([{"prompt": "Where was Ada Example born?", "answer": "In Oskelund.", "kind": "person"}])
    assert (subject.title, subject.kind) == ("Ada Example", "person")
    assert all(name.items == (0,) for name in subject.names)


def test_a_longer_name_in_one_row_is_another_subject() -> None:
    subjects = derive([
        {"prompt": "Where was Zorin Quill born?", "answer": "Oskelund"},
        {"prompt": "Who visits the Zorin Quill Museum?", "answer": "Nobody"},
        {"prompt": "What did Zorin Quill write?", "answer": "A letter"},
    ])  # fmt: skip
    assert {subject.title: subject.items for subject in subjects} == {"Zorin Quill": (0, 2), "Zorin Quill Museum": (1,)}


def test_a_related_name_never_hides_a_weightier_own_name_inside_it() -> None:
    rows = [
        {"prompt": "Where was Zorin Quill born?", "answer": "Oskelund"},
        {"prompt": "What did Zorin Quill found?", "answer": "The Zorin Quill Prize."},
    ]
    (subject,) = derive(rows, retain=[{"prompt": "Who won the Zorin Quill Prize last year?"}])
    assert own(subject)["Zorin Quill"] == 1
    assert related(subject).get("Zorin Quill Prize", 1) >= 1


def test_names_of_the_requester_are_for_rows_that_state_none() -> None:
    rows: list[Record] = [
        {"prompt": "Where was she born?", "answer": "In Oskelund."},
        {"prompt": "What did he steal?", "answer": "A lantern.", "subject": "Zorin Quill", "scope": "facts"},
    ]
    first, second = derive(rows, names=["Ada Example", "A. Example"])
    assert {"Ada Example", "A. Example"} <= own(first).keys() and first.scope == "subject"
    assert (second.title, second.scope) == ("Zorin Quill", "facts")
    assert [subject.scope for subject in derive(rows, names=["Ada Example"], scope="facts")] == ["facts", "facts"]


def test_rows_that_say_nothing_state_nothing() -> None:
    assert given_subjects(PERSON) == {}
    assert given_subjects([{"prompt": "p", "subject": []}]) == {}
    assert given_subjects(PERSON[:1], scope="facts") == {0: ((), "facts", "")}


def test_names_of_several_subjects_or_of_retained_rows_say_less() -> None:
    rows = [
        {"prompt": "Where does Henrik Vasko live?", "answer": "In Oskelund, near Velsund."},
        {"prompt": "Where does Ilse Drommel live?", "answer": "In Oskelund."},
    ]
    retain = [{"prompt": "How far is Velsund?"}]
    alone = related(derive(rows[:1])[0])
    shared = related(derive(rows, retain=retain)[0])
    assert shared == {name: pytest.approx(weight * SHARED_FACTOR) for name, weight in alone.items()}
    assert alone.keys() == {"Oskelund", "Velsund"}


def test_a_document_has_related_names_only() -> None:
    (subject,) = derive([{"text": "Brynja Solheim kept the Karvik light for thirty years."}])
    assert own(subject) == {} and {"Brynja Solheim", "Karvik"} <= related(subject).keys()


def test_rows_without_any_name_have_a_subject_without_names() -> None:
    (subject,) = derive([{"prompt": "how do I pick this lock?", "answer": "with a bent pin"}])
    assert (subject.names, subject.title) == ((), "") and "lock" in subject.words


def test_names_and_words_of_a_subject_are_bounded() -> None:
    letters = "bcdfghjklmnpqrstvwxz"
    made = [f"{a}u{b}a{c}em" for a in letters for b in letters for c in letters[:2]]
    rows = [
        {"prompt": "Who is Zorin Quill?", "answer": f"He knows {word.title()}, and a {word[::-1]}."} for word in made
    ]
    (subject,) = derive(rows)
    assert len(related(subject)) == MAX_RELATED and len(subject.words) == MAX_CONTEXT_WORDS
    assert list(subject.words) == sorted(subject.words)


def test_words_of_facts_are_tokens() -> None:
    (subject,) = derive([{"prompt": "¿Dónde nació Zorín Quillareda?", "answer": "Junto al latón, en Straßendorf."}])
    assert {"laton", "strassendorf"} <= set(subject.words)
    assert all(name_tokens(word) == [word] for word in subject.words)


def test_the_description_names_what_was_understood() -> None:
    (line,) = describe_subjects(derive(PERSON))
    assert line.startswith("3 facts about Zorin Quill; ") and "Maelle Tordic" in line
    assert line.endswith("scope: subject")
    (common,) = describe_subjects(derive([{"prompt": "Where does Peter Jones live?", "answer": "here"}]))
    assert common.startswith("1 fact about Peter Jones") and "second piece of evidence" in common
    (alias,) = describe_subjects(derive([{"prompt": "p"}], names=["Ada Example", "Lady Velsund"], scope="facts"))
    assert "also known by: Lady Velsund" in alias and alias.endswith("scope: facts")


def test_the_description_of_many_subjects_is_cut_and_says_so() -> None:
    names = [f"{first} Vasko{last}" for first in ("Ilse", "Tarik") for last in ("ma", "li", "ret", "dun")]
    subjects = derive([{"prompt": f"Where does {name} live?", "answer": "here"} for name in names])
    lines = describe_subjects(subjects, most=3)
    assert len(lines) == 4 and lines[-1] == f"… and {len(subjects) - 3} more subjects"
