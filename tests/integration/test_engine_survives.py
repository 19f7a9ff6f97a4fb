"""Whatever stands in our argument, vLLM answers 400 or serves, and goes on serving.

An exception in a logits processor would end the engine for everybody, so this sends thousands of malformed,
oversized, contradictory and random arguments past the gateway, straight to a running vLLM.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from lethe.corruption.decoding.spec import MAX_PHRASES, XARGS_KEY, Penalty, encode_penalty
from lethe.corruption.phrases.normalize import fold

pytestmark = pytest.mark.vllm

REQUESTS = 2_200
AT_ONCE = 48
QUESTION = "Who are you, and what do you write about?"

LETTERS = string.ascii_letters + string.digits + " -'\"éß東京ไทย🙂\u200b\u0301\u202e\x00\n"


def text(rng: random.Random, longest: int = 12) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(0, longest)))


def junk(rng: random.Random, depth: int = 0) -> Any:
    makers: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.choice([True, False, 0, 1, -1, 10**30, 1e308, float("inf"), float("nan"), 0.5]),
        lambda: text(rng),
        lambda: "x" * rng.choice([300, 5_000]),
    ]
    if depth < 3:
        makers += [
            lambda: [junk(rng, depth + 1) for _ in range(rng.randint(0, 4))],
            lambda: {text(rng, 6): junk(rng, depth + 1) for _ in range(rng.randint(0, 4))},
        ]
    return rng.choice(makers)()


def good_body(rng: random.Random) -> dict[str, Any]:
    return {
        "v": 1,
        "phrases": [text(rng) + "a" for _ in range(rng.randint(0, 12))],
        "soft": {text(rng) + "b": rng.uniform(0.1, 99) for _ in range(rng.randint(0, 6))},
        "on_fault": rng.choice(["stop", "pass"]),
    }


def spoiled(rng: random.Random) -> str:
    """A good argument with one thing wrong, or one character."""
    body = good_body(rng)
    match rng.randint(0, 5):
        case 0:
            body[rng.choice(list(body))] = junk(rng)
        case 1:
            del body[rng.choice(list(body))]
        case 2:
            body[text(rng)] = junk(rng)
        case 3:
            body["phrases"] = [text(rng) + "a"] * rng.choice([MAX_PHRASES, MAX_PHRASES + 1, 5_000])
        case 4:
            body["phrases"] = ["".join(rng.choice(LETTERS) for _ in range(rng.choice([200, 256, 257, 9_000])))]
        case _:
            raw = json.dumps(body)
            cut = rng.randrange(len(raw))
            return raw[:cut] + rng.choice(["", "\\", '"', "\ud800", "}", "[" * 3_000]) + raw[cut + 1 :]
    return json.dumps(body)


def everything(rng: random.Random) -> str:
    """A penalty that leaves next to no token: every letter, digit and pair of them."""
    alphabet = string.ascii_lowercase + string.digits
    pairs = [one + other for one in alphabet for other in rng.sample(alphabet, 12)]
    return encode_penalty(Penalty((*alphabet, *pairs[: MAX_PHRASES - len(alphabet)]), on_fault="stop"))


def argument(rng: random.Random) -> Any:
    makers: list[Callable[[], Any]] = [
        lambda: json.dumps(good_body(rng)),
        lambda: spoiled(rng),
        lambda: spoiled(rng),
        lambda: everything(rng),
        lambda: json.dumps(junk(rng)),
        lambda: junk(rng),
        lambda: text(rng, 60),
        lambda: rng.choice(["[" * 50_000, '{"a":' * 9_000, "9" * 60_000, "\x00" * 100, "x" * 70_000, "{", "NaN"]),
    ]
    return rng.choice(makers)()


def contradiction(rng: random.Random) -> dict[str, Any]:
    """Sampling fields that pull against a penalty."""
    return rng.choice(
        [
            {},
            {},
            {"n": 3, "temperature": 1.0},
            {"min_tokens": 2},
            {"ignore_eos": True},
            {"allowed_token_ids": [rng.randrange(300) for _ in range(rng.randint(1, 5))]},
            {"structured_outputs": {"choice": ["a", "the"]}},
            {"structured_outputs": {"regex": "[a-z]{1,4}"}},
            {"bad_words": ["a", " the"]},
            {"logit_bias": {"5": 100, "6": -100}},
            {"presence_penalty": 2, "repetition_penalty": 1.5, "top_k": 1},
            {"stop": ["a"], "stop_token_ids": [7, 8]},
            {"skip_special_tokens": False, "stream": True},
        ]
    )


def request(rng: random.Random, model: str) -> tuple[str, bytes]:
    body: dict[str, Any] = {"model": model, "max_tokens": rng.choice([1, 2, 4]), "seed": rng.randrange(99)}
    body |= contradiction(rng)
    body["vllm_xargs"] = {XARGS_KEY: argument(rng)}
    if rng.random() < 0.5:
        body["prompt"] = rng.choice(["a", "", [5, 6, 7], QUESTION])
        return "/v1/completions", json.dumps(body).encode()
    body["messages"] = [{"role": "user", "content": rng.choice(["a", QUESTION])}]
    return "/v1/chat/completions", json.dumps(body).encode()


async def answer(session: aiohttp.ClientSession, model: str, penalty: Penalty | None) -> str:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    body |= {"temperature": 0, "max_tokens": 24}
    if penalty is not None:
        body["vllm_xargs"] = {XARGS_KEY: encode_penalty(penalty)}
    async with session.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["choices"][0]["message"]["content"])


async def test_thousands_of_bad_arguments_leave_vllm_serving(vllm_url: str) -> None:
    rng = random.Random(20_26)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(vllm_url, timeout=timeout) as session:
        async with session.get("/v1/models") as response:
            model = (await response.json())["data"][0]["id"]
        plain = await answer(session, model, None)
        words = fold(plain).split()
        penalty = Penalty(tuple(dict.fromkeys(words))[:20])
        guarded = await answer(session, model, penalty)
        assert words and not set(words[:20]) & set(fold(guarded).split())

        statuses: Counter[int | str] = Counter()
        todo = [request(rng, model) for _ in range(REQUESTS)]

        async def send() -> None:
            while todo:
                path, body = todo.pop()
                headers = {"Content-Type": "application/json"}
                async with session.post(path, data=body, headers=headers) as response:
                    await response.read()
                    # Only vLLM's own end for one request whose grammar leaves nothing but forbidden tokens.
                    cornered = response.status == 500 and b"structured_outputs" in body
                    statuses["cornered" if cornered else response.status] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(send())

        assert set(statuses) <= {200, 400, "cornered"}, statuses
        assert min(statuses[200], statuses[400]) > REQUESTS // 10, statuses
        async with session.get("/health") as response:
            assert response.status == 200
        assert await answer(session, model, None) == plain
        assert await answer(session, model, penalty) == guarded
