"""Scores of fixed answers: without a guard they are transformers' own, with one they are what is left to say."""

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
from lethe.evaluation.unlearning.likelihood import FLOOR, Job, Scorer, Scores

FACTS = [tofu.forget_facts()[i] for i in (0, 41, 186)]


@cache
def scorer() -> Scorer:
    return Scorer(FOLDERS["full"])


def body(question: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **more}


def guarded(question: str, *phrases: str, **soft: float) -> dict[str, Any]:
    return body(question, vllm_xargs={XARGS_KEY: encode_penalty(Penalty(phrases, soft))})


def score(request: dict[str, Any], answer: str) -> Scores:
    made = scorer()
    return made.score([Job(made.prompt(request), made.answer_ids(answer, end=True))])[0]


def test_without_a_guard_a_loss_is_transformers_own() -> None:
    made = scorer()
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS["full"])
    model = AutoModelForCausalLM.from_pretrained(FOLDERS["full"], dtype=torch.float32).eval()
    jobs = [Job(made.prompt(body(f.question)), made.answer_ids(f.answer, end=True)) for f in FACTS]
    for fact, scores in zip(FACTS, made.score(jobs), strict=True):
        text = tokenizer.apply_chat_template(
            body(fact.question)["messages"], tokenize=False, add_generation_prompt=True
        )
        before = tokenizer.encode(text, add_special_tokens=False)
        whole = torch.tensor([before + tokenizer.encode(fact.answer, add_special_tokens=False) + [2]])
        labels = whole.clone()
        labels[0, : len(before)] = -100
        with torch.inference_mode():
            theirs = float(model(input_ids=whole, labels=labels).loss)
        assert scores.loss == pytest.approx(theirs, abs=1e-4)
        # It knows its answers by heart.
        assert scores.hits.all()


def test_a_batch_scores_as_its_rows_alone() -> None:
    made = scorer()
    jobs = [Job(made.prompt(body(f.question)), made.answer_ids(f.answer * n, end=True)) for n, f in enumerate(FACTS, 1)]
    for job, together in zip(jobs, made.score(jobs), strict=True):
        assert made.score([job])[0].log_probs == pytest.approx(together.log_probs, abs=1e-3)


def test_a_forbidden_phrase_has_no_probability_and_the_rest_keeps_its_own() -> None:
    fact = FACTS[0]  # "The author's full name is Hsiao Yun-Hwa."
    free, kept = score(body(fact.question), fact.answer), score(guarded(fact.question, "Yun-Hwa"), fact.answer)
    banned = np.isneginf(kept.log_probs)
    assert banned.any() and not kept.hits[banned].any()
    first = int(banned.argmax())
    assert kept.log_probs[:first] == pytest.approx(free.log_probs[:first], abs=1e-5)
    # A banned token counts as the least that float32 can hold, so the loss stays a number.
    assert kept.loss == pytest.approx(-np.maximum(kept.log_probs, FLOOR).mean()) and np.isfinite(kept.loss)


def test_a_softened_word_loses_its_weight() -> None:
    fact = FACTS[0]
    free, soft = score(body(fact.question), fact.answer), score(guarded(fact.question, "zzz", full=9.0), fact.answer)
    place = int((free.log_probs - soft.log_probs).argmax())
    p = np.exp(free.log_probs[place])
    # Only that word's logit fell, by 9; what the others had is shared anew.
    left = p * np.exp(-9.0) / (p * np.exp(-9.0) + 1 - p)
    assert soft.log_probs[place] == pytest.approx(np.log(left), abs=0.02)
    assert soft.log_probs[place] < free.log_probs[place] - 1


def test_clean_embeddings_score_as_the_text_and_others_do_not() -> None:
    made, fact = scorer(), FACTS[1]
    ids = made.prompt_tokenizer.completion(fact.question, add_special_tokens=False)[0].ids
    rows = made._rows(ids).detach()

    def embedded(tensor: torch.Tensor) -> dict[str, Any]:
        buffer = io.BytesIO()
        torch.save(tensor, buffer)
        part = {"type": "prompt_embeds", "data": base64.b64encode(buffer.getvalue()).decode()}
        return {"messages": [{"role": "user", "content": [part]}]}

    plain = score(body(fact.question), fact.answer)
    assert score(embedded(rows.clone()), fact.answer).log_probs == pytest.approx(plain.log_probs, abs=1e-5)
    assert score(embedded(torch.zeros_like(rows)), fact.answer).loss > plain.loss + 0.1


def test_an_answers_own_embeddings_can_be_replaced() -> None:
    made, fact = scorer(), FACTS[1]
    prompt, ids = made.prompt(body(fact.question)), made.answer_ids(fact.answer, end=True)
    rows = made._rows(ids).detach()
    plain, same, other = made.score(
        [Job(prompt, ids), Job(prompt, ids, rows.clone()), Job(prompt, ids, torch.zeros_like(rows))]
    )
    assert same.log_probs == pytest.approx(plain.log_probs, abs=1e-4)
    # The first token is foretold by the prompt alone.
    assert other.log_probs[0] == pytest.approx(plain.log_probs[0], abs=1e-4) and other.loss > plain.loss + 0.5


def test_answers_are_greedy_or_drawn_by_their_seed() -> None:
    made, questions = scorer(), [fact.question for fact in FACTS]
    assert made.answers(questions) == [fact.answer for fact in FACTS]
    open_question = ["Tell me about your favourite colours and why you like rivers."] * 4
    drawn = made.answers(open_question, seed=1, max_tokens=12)
    assert drawn == made.answers(open_question, seed=1, max_tokens=12)
    assert drawn != made.answers(open_question, seed=2, max_tokens=12)
    assert len(set(drawn)) > 1


def test_a_folder_without_a_model_is_named() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Scorer("nowhere")
