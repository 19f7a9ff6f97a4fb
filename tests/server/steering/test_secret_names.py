from __future__ import annotations

from pathlib import Path

import pytest

from lethe.classifier.artifact_io import load_artifact
from lethe.classifier.work_limit import WorkExceeded, WorkLimit
from lethe.server.guard.forget_answers import LazyArtifactWords
from lethe.server.steering.secret_names import SAMPLES, LazySecretNames

ARTIFACT = Path(__file__).parents[3] / "evaluation" / "demo" / "artifacts" / "tofu-forget10"


def lazy_names() -> LazySecretNames:
    artifacts = {"a": load_artifact(ARTIFACT)}
    return LazySecretNames(artifacts, LazyArtifactWords(artifacts))


def test_names_and_titles_are_collected_with_their_items() -> None:
    names = lazy_names()["a"]
    assert {"hsiao yun hwa", "nikolai abilov", "the breath between waves"} <= names.names.keys()
    assert "the breath between waves" in names.titles and "nikolai abilov" not in names.titles
    assert not {"taipei", "author", "the"} & names.names.keys() - {"taipei"}


def test_other_texts_keep_the_stop_words() -> None:
    names = lazy_names()["a"]
    shape = names.shape("the breath between waves")
    texts = names.other_texts(shape)
    assert len(texts) == SAMPLES and all(text.startswith("the ") and len(text.split()) == 4 for text in texts)


def test_collecting_goes_on_where_a_limit_stopped_it() -> None:
    lazy = lazy_names()
    tries = 0
    while "a" not in lazy:
        tries += 1
        try:
            WorkLimit(0.1).run(lambda: lazy["a"])
        except WorkExceeded:
            assert tries < 100
    assert lazy["a"].names == lazy_names()["a"].names


@pytest.mark.parametrize("name", ["missing"])
def test_an_unknown_artifact_has_no_names(name: str) -> None:
    with pytest.raises(KeyError):
        lazy_names()[name]
