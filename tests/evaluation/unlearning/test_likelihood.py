"""Scores of fixed answers: without a guard they equal transformers', with one they show what it changes."""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, encode_penalty
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.likelihood import MIN_LOG_PROB, LikelihoodModel, ScoringJob, TokenScores

FACTS = [tofu.forget_facts()[i] for i in (0, 41, 186)]


@cache
def likelihood_model() -> LikelihoodModel:
    return LikelihoodModel(FOLDERS["full"])


def body(question: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **more}


def guarded(question: str, *phrases: str, **soft: float) -> dict[str, Any]:
    return body(question, vllm_xargs={XARGS_KEY: encode_penalty(Penalty(phrases, soft))})


def score(request: dict[str, Any], answer: str) -> TokenScores:
    model = likelihood_model()
    return model.score([ScoringJob(model.prompt(request), model.answer_ids(answer, end=True))])[0]


def test_an_unguarded_loss_equals_that_of_transformers() -> None:
    model = likelihood_model()
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS["full"])
    reference = AutoModelForCausalLM.from_pretrained(FOLDERS["full"], dtype=torch.float32).eval()
    jobs = [ScoringJob(model.prompt(body(f.question)), model.answer_ids(f.answer, end=True)) for f in FACTS]
    for fact, scores in zip(FACTS, model.score(jobs), strict=True):
        text = tokenizer.apply_chat_template(
            body(fact.question)["messages"], tokenize=False, add_generation_prompt=True
        )
        before = tokenizer.encode(text, add_special_tokens=False)
        whole = torch.tensor([before + tokenizer.encode(fact.answer, add_special_tokens=False) + [2]])
        labels = whole.clone()
        labels[0, : len(before)] = -100
        with torch.inference_mode():
            expected = float(reference(input_ids=whole, labels=labels).loss)
        assert scores.loss == pytest.approx(expected, abs=1e-4)
        # The demo model has memorised its answers.
        assert scores.hits.all()


def test_a_batch_scores_as_its_rows_one_by_one() -> None:
    model = likelihood_model()
    jobs = [
        ScoringJob(model.prompt(body(f.question)), model.answer_ids(f.answer * n, end=True))
        for n, f in enumerate(FACTS, 1)
    ]
    for job, in_batch in zip(jobs, model.score(jobs), strict=True):
        assert model.score([job])[0].log_probs == pytest.approx(in_batch.log_probs, abs=1e-3)


def test_a_forbidden_phrase_has_probability_zero() -> None:
    fact = FACTS[0]  # "The author's full name is Hsiao Yun-Hwa."
    free, penalized = score(body(fact.question), fact.answer), score(guarded(fact.question, "Yun-Hwa"), fact.answer)
    banned = np.isneginf(penalized.log_probs)
    assert banned.any() and not penalized.hits[banned].any()
    first = int(banned.argmax())
    assert penalized.log_probs[:first] == pytest.approx(free.log_probs[:first], abs=1e-5)
    # A banned token counts with MIN_LOG_PROB, so the loss is finite.
    assert penalized.loss == pytest.approx(-np.maximum(penalized.log_probs, MIN_LOG_PROB).mean()) and np.isfinite(
        penalized.loss
    )


def test_a_logit_penalty_lowers_one_words_probability() -> None:
    fact = FACTS[0]
    free, soft = score(body(fact.question), fact.answer), score(guarded(fact.question, "zzz", full=9.0), fact.answer)
    place = int((free.log_probs - soft.log_probs).argmax())
    p = np.exp(free.log_probs[place])
    # Only that word's logit fell, by 9; the others are renormalised.
    expected = p * np.exp(-9.0) / (p * np.exp(-9.0) + 1 - p)
    assert soft.log_probs[place] == pytest.approx(np.log(expected), abs=0.02)
    assert soft.log_probs[place] < free.log_probs[place] - 1


def test_only_clean_embeddings_score_as_the_text() -> None:
    model, fact = likelihood_model(), FACTS[1]
    ids = model.prompt_tokenizer.completion(fact.question, add_special_tokens=False)[0].ids
    rows = model._embedding_rows(ids).detach()

    def embedded(tensor: torch.Tensor) -> dict[str, Any]:
        buffer = io.BytesIO()
        torch.save(tensor, buffer)
        part = {"type": "prompt_embeds", "data": base64.b64encode(buffer.getvalue()).decode()}
        return {"messages": [{"role": "user", "content": [part]}]}

    plain = score(body(fact.question), fact.answer)
    assert score(embedded(rows.clone()), fact.answer).log_probs == pytest.approx(plain.log_probs, abs=1e-5)
    assert score(embedded(torch.zeros_like(rows)), fact.answer).loss > plain.loss + 0.1


def test_the_embeddings_of_an_answer_can_be_replaced() -> None:
    model, fact = likelihood_model(), FACTS[1]
    prompt, ids = model.prompt(body(fact.question)), model.answer_ids(fact.answer, end=True)
    rows = model._embedding_rows(ids).detach()
    plain, same, other = model.score(
        [
            ScoringJob(prompt, ids),
            ScoringJob(prompt, ids, rows.clone()),
            ScoringJob(prompt, ids, torch.zeros_like(rows)),
        ]
    )
    assert same.log_probs == pytest.approx(plain.log_probs, abs=1e-4)
    # The first token depends on the prompt alone.
    assert other.log_probs[0] == pytest.approx(plain.log_probs[0], abs=1e-4) and other.loss > plain.loss + 0.5


def test_answers_are_greedy_or_sampled_by_seed() -> None:
    model, questions = likelihood_model(), [fact.question for fact in FACTS]
    assert model.generate_answers(questions) == [fact.answer for fact in FACTS]
    open_question = ["Tell me about your favourite colours and why you like rivers."] * 4
    sampled = model.generate_answers(open_question, seed=1, max_tokens=12)
    assert sampled == model.generate_answers(open_question, seed=1, max_tokens=12)
    assert sampled != model.generate_answers(open_question, seed=2, max_tokens=12)
    assert len(set(sampled)) > 1


def test_the_error_for_an_unusable_folder_names_it() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        LikelihoodModel("nowhere")
