"""The guard in this process, with the demo's artifact and model: upstream bodies and corrupted answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from lethe.corruption.decoding.spec import XARGS_KEY
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.collect import Collector, SamplingPlan
from lethe.evaluation.unlearning.datasets import build_dataset
from lethe.evaluation.unlearning.offline_guard import OfflineGuard, chat_body
from lethe.evaluation.unlearning.result_cache import ResultCache
from lethe.evaluation.unlearning.systems import SYSTEMS
from lethe.server.policy.schema import Policy
from lethe.server.policy_store.load import load_artifact
from lethe.server.settings import Settings

ARTIFACTS = Path(tofu.__file__).parents[1] / "demo" / "artifacts"
POLICY = Policy.model_validate({"name": "p", "artifact": "tofu-forget10", "action": "refuse"})
FORGET = tofu.forget_facts()[0]
RETAIN = "What is rye bread made of?"


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Collector:
    settings = Settings.model_validate({"artifacts": ARTIFACTS, "model_dir": FOLDERS["full"]})
    return Collector(
        settings,
        POLICY,
        build_dataset(load_artifact(settings, POLICY)).subsample(200),
        SamplingPlan((0,), (0,), rewordings=1),
        ResultCache(tmp_path_factory.mktemp("work")),
        upstream="http://127.0.0.1:9",
        model="demo",
        twin_dir=None,
        inputs=[],
    )


def test_an_unguarded_body_is_the_question_after_the_system_prompt() -> None:
    guard = OfflineGuard(None, "Be brief.")
    assert guard.upstream_body("Hello?") == chat_body("Hello?", "Be brief.")
    assert [message["role"] for message in guard.upstream_body("Hello?")["messages"]] == ["system", "user"]


def test_a_penalizing_guard_adds_a_penalty_to_flagged_questions(collector: Collector) -> None:
    guard = collector._offline_guard_of(SYSTEMS["penalize"])
    assert XARGS_KEY in guard.upstream_body(FORGET.question)["vllm_xargs"]
    assert guard.upstream_body(RETAIN) == chat_body(RETAIN)


def test_a_corrupting_guard_replaces_embeddings_of_prompt_and_answer(collector: Collector) -> None:
    guard = collector._offline_guard_of(SYSTEMS["corrupt-decoy-evidence"])
    (message,) = guard.upstream_body(FORGET.question)["messages"]
    assert message["content"][0]["type"] == "prompt_embeds"
    model = collector.served_model
    assert model is not None and model.end_id is not None
    rows = guard.corrupted_answer(FORGET.question, FORGET.answer, [model.end_id])
    assert rows.shape[0] == len(model.answer_ids(FORGET.answer, end=True))
    assert guard.corrupted_answer(RETAIN, "Rye flour.", [model.end_id]) is None


def test_a_refusing_guard_raises_for_flagged_questions(collector: Collector) -> None:
    guard = collector._offline_guard_of(SYSTEMS["policy"])
    with pytest.raises(ValueError, match="refuses a question"):
        guard.upstream_body(FORGET.question)


def test_forget_questions_score_above_the_threshold(collector: Collector) -> None:
    scores = collector.forget_scores([FORGET.question, RETAIN], "test")
    assert scores[0] >= collector.threshold > scores[1]
