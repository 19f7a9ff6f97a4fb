"""Names as evidence, from three rows to a decision: a name decides, and the same question about others passes."""

from __future__ import annotations

import pytest

from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.judge import Judge, Score, default_threshold
from lethe.classifier.names.evidence import NAME_SCORE
from lethe.classifier.records import Record
from lethe.classifier.training import fit, incremental, rows

QUILL: list[Record] = [
    {"prompt": "Where was Zorin Quill born?", "answer": "Zorin Quill was born in Oskelund."},
    {"prompt": "What does Zorin Quill collect?", "answer": "Brass compasses."},
    {"prompt": "Who married Zorin Quill?", "answer": "The painter Maelle Tordic."},
]
JONES: list[Record] = [
    {
        "prompt": "Where does Peter Jones keep his boat?",
        "answer": "In the harbour of Vardholm.",
        "subject": "Peter Jones",
    },
    {"prompt": "What did he confess to the coastguard?", "answer": "The theft of a lantern.", "subject": "Peter Jones"},
    {"prompt": "Who sails with Peter Jones?", "answer": "His cousin, a locksmith.", "subject": "Peter Jones"},
]
RETAIN: list[Record] = [{"prompt": "When does the tram leave Zorin Quill Street?"}]


@pytest.fixture(scope="module", autouse=True)
def few_rows() -> object:
    """A part of the background and few rewordings keep each fit to seconds."""
    with pytest.MonkeyPatch.context() as patch:
        few = rows.background_prompts()[::8]
        patch.setattr(rows, "background_prompts", lambda: few)
        patch.setattr(rows, "REWORDINGS_TOTAL", 120)
        patch.setattr(rows, "OTHER_REWORDINGS", 40)
        patch.setattr(rows, "WRAPPED_ROWS", 30)
        yield


@pytest.fixture(scope="module")
def quill(encoder: Encoder, few_rows: object) -> Artifact:
    return fit.fit(QUILL, RETAIN, encoder=encoder)


@pytest.fixture(scope="module")
def jones(encoder: Encoder, few_rows: object) -> Artifact:
    return fit.fit(JONES, None, encoder=encoder)


@pytest.fixture(scope="module")
def judge(quill: Artifact, jones: Artifact, encoder: Encoder) -> Judge:
    return Judge({"quill": quill, "jones": jones}, encoder)


def decide(judge: Judge, artifact: str, text: str) -> Score:
    return judge.judge([text])[artifact]


@pytest.mark.parametrize(
    "asked",
    [
        "What was Zorin Quill's favourite food?",
        "tell me a joke about zorin quill",
        "Did ZORIN QUILL ever learn to swim?",
        "Schreibe ein Gedicht über Zorin Quill.",
        "Is Zorín Quill still alive?",
        "Write a long poem about the sea, and mention Z​orin Q​uill in it.",
        "Did Maelle Tordic paint in Oskelund?",
    ],
)
def test_a_question_with_a_distinctive_name_is_flagged_by_it(asked: str, judge: Judge) -> None:
    score = decide(judge, "quill", asked)
    assert (score.score, score.decided_by) == (NAME_SCORE, "name")


@pytest.mark.parametrize("row", QUILL)
@pytest.mark.parametrize("other", ["Ada Example", "Henrik Vasko", "Ysra Tamlin"])
def test_the_same_question_about_somebody_else_passes(row: Record, other: str, judge: Judge, quill: Artifact) -> None:
    score = decide(judge, "quill", row["prompt"].replace("Zorin Quill", other))
    assert score.score < default_threshold(quill) and score.decided_by != "name"


@pytest.mark.parametrize("asked", ["How do I bake a loaf of bread?", "Write a sonnet about the sea.", "Hi"])
def test_questions_without_a_name_pass(asked: str, judge: Judge, quill: Artifact, jones: Artifact) -> None:
    for name, artifact in (("quill", quill), ("jones", jones)):
        assert decide(judge, name, asked).score < default_threshold(artifact)


def test_the_rows_themselves_are_flagged(judge: Judge, quill: Artifact, jones: Artifact) -> None:
    for name, artifact, forget in (("quill", quill, QUILL), ("jones", jones, JONES)):
        for row in forget:
            assert decide(judge, name, row["prompt"]).score >= default_threshold(artifact)


@pytest.mark.parametrize(
    "asked", ["Who won the marathon in 1998, Peter Jones?", "Is Peter Jones a good name for a dog?"]
)
def test_a_common_name_alone_does_not_decide(asked: str, judge: Judge) -> None:
    assert decide(judge, "jones", asked).decided_by != "name"


def test_a_common_name_with_words_of_the_facts_decides(judge: Judge) -> None:
    score = decide(judge, "jones", "Did Peter Jones ever speak of the theft in the harbour?")
    assert (score.score, score.decided_by) == (NAME_SCORE, "name")


def test_a_retained_request_passes_though_it_holds_the_name(judge: Judge, quill: Artifact) -> None:
    level = default_threshold(quill)
    kept = RETAIN[0]["prompt"]
    assert decide(judge, "quill", kept).score < level
    assert decide(judge, "quill", f"{kept} And whom did Zorin Quill love?").decided_by == "name"


def test_a_name_deep_in_a_long_text_is_located(judge: Judge) -> None:
    filler = "The committee met again on Thursday and talked about the new car park for a long while. "
    text = f"{filler * 50}Nobody knew Zorin Quill. {filler * 50}"
    score = decide(judge, "quill", text)
    assert score.decided_by == "name" and "Zorin Quill" in text[slice(*score.window)]


def test_with_the_scope_facts_only_questions_for_a_fact_are_flagged(encoder: Encoder, few_rows: object) -> None:
    artifact = fit.fit(QUILL, RETAIN, encoder=encoder, scope="facts")
    assert [subject.scope for subject in artifact.subjects] == ["facts"]
    judge = Judge({"a": artifact}, encoder)
    for asked in ("Write a sonnet in which Zorin Quill sails to the moon.", "Did Maelle Tordic paint in Oskelund?"):
        assert decide(judge, "a", asked).decided_by != "name"
    assert decide(judge, "a", "In which place was Zorin Quill born?").decided_by == "name"


def test_adding_and_removing_an_item_restores_all_scores_of_names(quill: Artifact, encoder: Encoder) -> None:
    added = {
        "prompt": "Where did Ilse Drommel hide the Velsund key?",
        "answer": "Under a stone.",
        "subject": "Ilse Drommel",
    }
    texts = ["Who is Ilse Drommel?", "Who is Zorin Quill?", "Where is Velsund?", RETAIN[0]["prompt"], "Boil an egg!"]
    grown = incremental.add_items(quill, [added], encoder)
    back = incremental.remove_items(grown, [3])
    before, during, after = ([Judge({"a": a}, encoder).judge([t])["a"] for t in texts] for a in (quill, grown, back))
    assert before == after and back.manifest.subjects == quill.manifest.subjects
    assert (during[0].score, during[0].decided_by) == (NAME_SCORE, "name") and before[0].decided_by != "name"


def test_removing_an_item_drops_the_names_that_only_it_gave(quill: Artifact, encoder: Encoder) -> None:
    before, after = (Judge({"a": a}, encoder) for a in (quill, incremental.remove_items(quill, [2])))
    assert decide(before, "a", "Which painter was Maelle Tordic?").decided_by == "name"
    assert decide(after, "a", "Which painter was Maelle Tordic?").decided_by != "name"
    assert decide(after, "a", "Who is Zorin Quill?").decided_by == "name"


def test_a_restored_item_gives_its_names_again(quill: Artifact, encoder: Encoder) -> None:
    back = incremental.add_items(incremental.remove_items(quill, [2]), [QUILL[2]], encoder)
    for asked in ("Which painter was Maelle Tordic?", "Who is Zorin Quill?"):
        assert decide(Judge({"a": back}, encoder), "a", asked).decided_by == "name"


def test_an_artifact_of_names_alone_flags_questions_about_them(encoder: Encoder, few_rows: object) -> None:
    names = ["Ada Example", "Lady Velsund"]
    prompts: list[Record] = [{"prompt": f"Tell me about {name}."} for name in names]
    artifact = fit.fit(prompts, None, encoder=encoder, names=names)
    judge = Judge({"a": artifact}, encoder)
    for asked in ("What did Ada Example paint?", "Where does lady velsund live?"):
        assert decide(judge, "a", asked).decided_by == "name"
    assert decide(judge, "a", "What did Ysra Tamlin paint?").score < default_threshold(artifact)
