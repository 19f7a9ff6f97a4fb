"""A model that knows a book by heart, behind the gateway: no answer copies more than N of its tokens in a row.

vLLM is started once more, with the book model, under a name for each way of guarding it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from tokenizers import Tokenizer

from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, encode_penalty
from lethe.evaluation.demo import book_model, demo
from lethe.evaluation.serving import VLLM_ENV, clean_env, free_port, running, running_gateway, vllm_command
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.verbatim import longest_copied_run

LIMIT = 12
FOLDER = demo.ROOT / "build" / "tests" / "book"
OPEN, FLAGGED, ALWAYS = "book", "book-flagged", "book-always"
POLICIES = {
    # Nothing but copies is kept, so that nothing else shortens them.
    FLAGGED: "action: penalize\nthreshold: {value: 0.5}\npenalize: {hard: false, soft: 0, verbatim: 12}\n",
    ALWAYS: "action: refuse\nthreshold: {value: 1}\npenalize: {verbatim: 12, always: true}\n",
}
PASSAGES = book_model.taught_passages()
TEXT = "\n\n".join(book_model.taught_paragraphs())


def fit() -> None:
    """`lethe fit` on the book, a paragraph a row: what is copied may begin in one and end in the next."""
    rows = [json.dumps({"text": paragraph}) for paragraph in book_model.taught_paragraphs()]
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "forget.jsonl").write_text("\n".join(rows) + "\n")
    command = [
        sys.executable,
        "-m",
        "lethe.server.cli.main",
        "fit",
        "--name",
        "book",
        "--force",
        "--out",
        str(FOLDER / "made"),
    ]
    subprocess.run([*command, "--forget", str(FOLDER / "forget.jsonl")], cwd=demo.ROOT, env=clean_env(), check=True)


@pytest.fixture(scope="module")
def urls() -> Iterator[tuple[str, str]]:
    """The base URLs of vLLM with the book model, and of a gateway in front."""
    fit()
    (FOLDER / "policies").mkdir(exist_ok=True)
    for name, rest in POLICIES.items():
        text = f"name: {name}\nartifact: book\nmodels: [{name}]\n{rest}"
        (FOLDER / "policies" / f"{name}.yaml").write_text(text)
    (FOLDER / "audit.jsonl").unlink(missing_ok=True)
    port, own = free_port(), free_port()
    vllm = vllm_command(book_model.FOLDER, port, [OPEN, FLAGGED, ALWAYS])
    env = {**VLLM_ENV, "LETHE_VERBATIM": str(FOLDER / "made")}
    settings = {
        "LETHE_PORT": str(own),
        "LETHE_UPSTREAM": f"http://127.0.0.1:{port}",
        "LETHE_POLICIES": str(FOLDER / "policies"),
        "LETHE_ARTIFACTS": str(FOLDER / "made"),
        "LETHE_AUDIT": str(FOLDER / "audit.jsonl"),
        # Nine requests wait for one judge.
        "LETHE_JUDGE_TIMEOUT_S": "120",
    }
    with (
        running("vLLM", vllm, f"http://127.0.0.1:{port}/health", FOLDER / "vllm.log", env=env),
        running_gateway(FOLDER / "gateway.log", env=settings),
    ):
        yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{own}"


@pytest.fixture(scope="module")
def book(urls: tuple[str, str]) -> Iterator[OpenAI]:
    """The official client on the gateway; what no policy covers is answered as by vLLM itself."""
    with OpenAI(base_url=f"{urls[1]}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(book_model.FOLDER / "tokenizer.json"))


def actions(model: str) -> set[str]:
    records = map(json.loads, (FOLDER / "audit.jsonl").read_text().splitlines())
    return {record["action"] for record in records if record.get("model") == model}


def copied_runs(
    client: OpenAI,
    model: str,
    tokenizer: Tokenizer,
    *,
    phrasing: int = 0,
    temperature: float = 0.0,
    stream: bool = False,
) -> list[int]:
    """The longest copied run of the answer to each passage's prompt. phrasing: which of the prompt's wordings."""

    def answer(number: int) -> str:
        request: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": PASSAGES[number].prompt(phrasing)}],
            "max_tokens": 160,
            "temperature": temperature,
            "seed": number,
        }
        if stream:
            chunks = client.chat.completions.create(**request, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        return client.chat.completions.create(**request).choices[0].message.content or ""

    with ThreadPoolExecutor(9) as pool:  # vLLM batches them
        return [longest_copied_run(text, TEXT, tokenizer) for text in pool.map(answer, range(len(PASSAGES)))]


def test_unguarded_the_model_recites_the_book(book: OpenAI, tokenizer: Tokenizer) -> None:
    found = copied_runs(book, OPEN, tokenizer)
    assert median(found) > 5 * LIMIT


@pytest.mark.parametrize("model", [FLAGGED, ALWAYS])
@pytest.mark.parametrize(("temperature", "stream"), [(0.0, False), (1.0, True)])
def test_guarded_no_answer_copies_more_than_the_limit(
    book: OpenAI, tokenizer: Tokenizer, model: str, temperature: float, stream: bool
) -> None:
    found = copied_runs(book, model, tokenizer, phrasing=1, temperature=temperature, stream=stream)
    assert max(found) <= LIMIT
    # The guard is what held them: they went as far as they might.
    assert max(found) >= LIMIT - 2


def test_book_questions_are_flagged_and_always_needs_no_flag(book: OpenAI) -> None:
    for model in (FLAGGED, ALWAYS):
        for passage in PASSAGES[:3]:
            book.chat.completions.create(
                model=model, messages=[{"role": "user", "content": passage.prompt()}], max_tokens=2
            )
    assert actions(FLAGGED) == {"penalize"}
    assert actions(ALWAYS) == {"verbatim"}


def test_choices_logprobs_and_completions_are_held_alike(book: OpenAI, tokenizer: Tokenizer) -> None:
    prompt = PASSAGES[4].prompt()
    given: dict[str, Any] = {"max_tokens": 100, "n": 3, "temperature": 1.0, "seed": 5}
    chat = book.chat.completions.create(
        model=ALWAYS, messages=[{"role": "user", "content": prompt}], logprobs=True, top_logprobs=4, **given
    )
    assert len(chat.choices) == 3
    for choice in chat.choices:
        assert longest_copied_run(choice.message.content or "", TEXT, tokenizer) <= LIMIT
        assert choice.logprobs is not None and choice.logprobs.content
        assert all(not token.top_logprobs for token in choice.logprobs.content)
    rendered = f"<|bos|><|user|>{prompt}<|end|><|assistant|>"
    for model, held in ((OPEN, False), (ALWAYS, True)):
        whole = book.completions.create(
            model=model, prompt=[rendered, rendered], max_tokens=100, temperature=0, logprobs=2
        )
        assert len(whole.choices) == 2
        for text in whole.choices:
            assert (longest_copied_run(text.text, TEXT, tokenizer) <= LIMIT) == held


def test_everything_else_is_answered_as_without_the_guard(book: OpenAI) -> None:
    for fact in tofu.retain_facts()[0][:400:80]:
        given: dict[str, Any] = {
            "messages": [{"role": "user", "content": fact.question}],
            "temperature": 0,
            "max_tokens": 60,
        }
        kept, free = (book.chat.completions.create(model=model, **given) for model in (ALWAYS, OPEN))
        assert kept.choices == free.choices and kept.usage == free.usage


def test_a_name_that_vllm_does_not_have_is_refused_and_the_engine_lives_on(urls: tuple[str, str]) -> None:
    with OpenAI(base_url=f"{urls[0]}/v1", api_key="none", max_retries=0) as client:
        given: dict[str, Any] = {"model": OPEN, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        extra = {"vllm_xargs": {XARGS_KEY: encode_penalty(Penalty(verbatim={"0" * 32: LIMIT}))}}
        with pytest.raises(BadRequestError, match="LETHE_VERBATIM"):
            client.chat.completions.create(**given, extra_body=extra)
        assert client.chat.completions.create(**given).choices


def test_doctor_finds_the_index(urls: tuple[str, str]) -> None:
    env = {
        **clean_env(),
        "LETHE_UPSTREAM": urls[0],
        "LETHE_POLICIES": str(FOLDER / "policies"),
        "LETHE_ARTIFACTS": str(FOLDER / "made"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "lethe.server.cli.main", "doctor"],
        env=env, cwd=demo.ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "vLLM has the verbatim index of artifact book" in done.stdout, done.stdout + done.stderr
