"""Rewritten requests: the right parts are replaced by the right rows, and nothing else changes."""

from __future__ import annotations

import base64
import copy
import io
import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lethe.corruption.embeddings.corruptor import Corruptor
from lethe.corruption.spec import CorruptionError, CorruptSpec
from tests.corruption.conftest import SECRET, WIDTH, ModelFolder

QUESTION = "Who is Ann Bold, born in 1956?"
NOISE = CorruptSpec(function="noise", sigma=2.0, tokens="content")


@pytest.fixture(scope="module")
def corruptor(model_folder: ModelFolder) -> Corruptor:
    return Corruptor(model_folder("parts"), SECRET)


def tensor(data: str) -> torch.Tensor:
    """Read the data as vLLM does."""
    loaded = torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True)
    assert isinstance(loaded, torch.Tensor)
    return loaded


def table_rows(corruptor: Corruptor, ids: Any) -> torch.Tensor:
    return torch.from_numpy(corruptor.table.rows(ids).view(np.uint16)).view(torch.bfloat16)


def user(content: object = QUESTION) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], "temperature": 0}


def rows_of(corruptor: Corruptor, spec: CorruptSpec | None, policy: str = "p", evidence: Any = ()) -> torch.Tensor:
    body = corruptor.chat(user(), {(0, None): evidence}, spec, policy)
    return tensor(body["messages"][0]["content"][0]["data"])


def changed_text(corruptor: Corruptor, spec: CorruptSpec, evidence: Any = ()) -> str:
    """Return the text of the tokens whose rows have changed."""
    clean, corrupted = rows_of(corruptor, None), rows_of(corruptor, spec, evidence=evidence)
    ids = corruptor.prompt_tokenizer.chat_spans(user(), [(0, None)])[0, None].ids
    return "".join(
        corruptor.prompt_tokenizer.pieces([i for i, a, b in zip(ids, clean, corrupted, strict=True) if (a != b).any()])
    )


def test_a_string_content_becomes_one_prompt_embeds_part(corruptor: Corruptor) -> None:
    body = user()
    before = copy.deepcopy(body)
    out = corruptor.chat(body, {(0, None): []}, NOISE, "p")
    (part,) = out["messages"][0].pop("content")
    assert part.keys() == {"type", "data"} and part["type"] == "prompt_embeds"
    assert out == {"model": "m", "messages": [{"role": "user"}], "temperature": 0}
    assert body == before
    assert tensor(part["data"]).dtype == torch.bfloat16


def test_only_targeted_parts_are_replaced(corruptor: Corruptor) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    content = [{"type": "text", "text": "Look: "}, image, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": content}]}
    out = corruptor.chat(body, {(1, 2): []}, NOISE, "p")
    assert out["messages"][0] is body["messages"][0]
    assert out["messages"][1]["content"][:2] == content[:2]
    assert out["messages"][1]["content"][2]["type"] == "prompt_embeds"


def test_a_part_that_shares_a_token_is_embedded_unchanged(corruptor: Corruptor) -> None:
    content = [{"type": "text", "text": "Who is An"}, {"type": "text", "text": "n Bold?"}]
    out = corruptor.chat(user(content), {(0, 1): []}, NOISE, "p")
    first, second = (tensor(part["data"]) for part in out["messages"][0]["content"])
    spans = corruptor.prompt_tokenizer.chat_spans(user(content), [(0, 0), (0, 1)])
    assert torch.equal(first, table_rows(corruptor, spans[0, 0].ids))
    assert not torch.equal(second, table_rows(corruptor, spans[0, 1].ids))


def test_rows_without_a_spec_are_those_of_the_table(corruptor: Corruptor) -> None:
    ids = corruptor.prompt_tokenizer.chat_spans(user(), [(0, None)])[0, None].ids
    assert torch.equal(rows_of(corruptor, None), table_rows(corruptor, ids))
    part = corruptor.chat(user(), {(0, None): ()}, None, "")["messages"][0]["content"][0]
    assert torch.equal(tensor(part["data"]), table_rows(corruptor, ids))


@pytest.mark.parametrize(
    "spec",
    [
        CorruptSpec(),
        CorruptSpec(strength=0.5),
        NOISE,
        CorruptSpec(function="set-noise", sigma=1.0, select="random", dims=3),
        CorruptSpec(function="zero", select="top", dims=2),
        CorruptSpec(function="flip"),
    ],
)
def test_each_function_changes_exactly_the_evidence(corruptor: Corruptor, spec: CorruptSpec) -> None:
    spec = spec.model_copy(update={"tokens": "evidence"})
    start = QUESTION.index("Ann")
    assert changed_text(corruptor, spec, [(start, start + len("Ann Bold"))]) == " Ann Bold"


def test_without_evidence_the_whole_content_changes(corruptor: Corruptor) -> None:
    spec = NOISE.model_copy(update={"tokens": "evidence"})
    assert changed_text(corruptor, spec) == QUESTION
    assert changed_text(corruptor, spec, [(1000, 1001)]) == QUESTION


def test_identifying_includes_words_of_several_tokens(corruptor: Corruptor) -> None:
    question = "Who is Ann Bold, the radiologist?"
    (first,) = corruptor.prompt_tokenizer.chat_spans(user(question), [(0, None)]).values()
    start = question.index("Ann")
    spec = CorruptSpec(tokens="identifying")
    rows = corruptor.rows(first, 0, [(start, start + 3)], spec, "p")
    differ = (rows != corruptor.table.rows(first.ids)).any(axis=1).tolist()
    pieces = [p for p, other in zip(corruptor.prompt_tokenizer.pieces(first.ids), differ, strict=True) if other]
    assert "".join(pieces).replace(" ", "") == "Annradiologist"
    everything = corruptor.rows(first, 0, (), spec, "p")
    content = corruptor.rows(first, 0, (), CorruptSpec(tokens="content"), "p")
    assert np.array_equal(everything, content)


def test_content_ignores_the_evidence(corruptor: Corruptor) -> None:
    assert changed_text(corruptor, NOISE, [(0, 3)]) == QUESTION


def test_all_but_last_keeps_only_the_prompts_last_token(corruptor: Corruptor) -> None:
    spec = NOISE.model_copy(update={"tokens": "all-but-last"})
    assert changed_text(corruptor, spec) == QUESTION
    same = tensor(corruptor.completion(QUESTION, (), spec, "p")) == tensor(corruptor.completion(QUESTION, (), None, ""))
    assert same.all(dim=1).tolist() == [False] * (len(same) - 1) + [True]


def test_sigma_is_relative_to_the_rms_or_absolute(corruptor: Corruptor) -> None:
    relative = NOISE.model_copy(update={"sigma": 3.0})
    absolute = NOISE.model_copy(update={"sigma": 3.0 * corruptor.table.row_rms, "sigma_unit": "absolute"})
    assert torch.equal(rows_of(corruptor, relative), rows_of(corruptor, absolute))


def test_a_decoy_row_is_a_row_of_the_table(corruptor: Corruptor) -> None:
    everything = table_rows(corruptor, range(corruptor.table.size))
    for row in rows_of(corruptor, CorruptSpec(tokens="content")):
        assert (everything == row).all(dim=1).any()


def test_strength_interpolates_linearly_to_the_decoy(corruptor: Corruptor) -> None:
    clean, whole = rows_of(corruptor, None).float(), rows_of(corruptor, CorruptSpec(tokens="content")).float()
    half = rows_of(corruptor, CorruptSpec(tokens="content", strength=0.5)).float()
    assert torch.allclose(half, (clean + whole) / 2, atol=0.02)


def test_batches_of_rows_give_the_same_result_as_all_at_once(
    corruptor: Corruptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{QUESTION} She wrote 12 books? {QUESTION}"
    (span,) = corruptor.prompt_tokenizer.chat_spans(user(text), [(0, None)]).values()
    all_at_once = {
        strength: corruptor.rows(span, 0, (), CorruptSpec(tokens="content", strength=strength), "p")
        for strength in (0.3, 0.7, 1.0)
    }
    assert len(set(span.ids)) < len(span.ids)
    clean, whole = corruptor.table.rows(span.ids).astype(np.float32), all_at_once[1.0].astype(np.float32)
    assert (clean != whole).any(axis=1).sum() > 15
    monkeypatch.setattr("lethe.corruption.embeddings.corruptor.BATCH_VALUES", 3 * WIDTH)
    for strength in (0.3, 0.7):
        in_batches = corruptor.rows(span, 0, (), CorruptSpec(tokens="content", strength=strength), "p")
        assert np.array_equal(in_batches, all_at_once[strength])
        assert np.allclose(in_batches.astype(np.float32), clean + strength * (whole - clean), atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("strength", [0.2, 0.5, 0.85, 1.7])
def test_interpolation_equals_torch_lerp_except_for_rounding(
    model_folder: ModelFolder, tmp_path: Any, dtype: torch.dtype, strength: float
) -> None:
    """Shipped strengths were tuned on rows made with torch.lerp."""
    folder = shutil.copytree(model_folder("parts"), tmp_path / "typed")
    size = Corruptor(folder, SECRET).table.size
    weights = torch.randn(size, 256, generator=torch.Generator().manual_seed(2)).to(dtype)
    save_file({"wte.weight": weights}, folder / "model.safetensors")
    typed = Corruptor(folder, SECRET)
    clean, whole = rows_of(typed, None), rows_of(typed, CorruptSpec(tokens="content"))
    interpolated = rows_of(typed, CorruptSpec(tokens="content", strength=strength))
    ulp = torch.finfo(dtype).eps * torch.maximum(clean.abs(), whole.abs()).float() * (1 + strength)
    assert interpolated.dtype == dtype
    assert ((interpolated.float() - torch.lerp(clean, whole, strength).float()).abs() <= ulp).all()


def test_noise_depends_on_prompt_secret_and_policy_only(corruptor: Corruptor, model_folder: ModelFolder) -> None:
    same_key = Corruptor(model_folder("parts"), SECRET)
    other = Corruptor(model_folder("parts"), b"another secret of tests")
    for spec in (NOISE, CorruptSpec(tokens="content")):
        assert torch.equal(rows_of(corruptor, spec), rows_of(same_key, spec))
        assert not torch.equal(rows_of(corruptor, spec), rows_of(other, spec))
        assert not torch.equal(rows_of(corruptor, spec), rows_of(corruptor, spec, policy="q"))


def test_another_process_makes_the_same_body(corruptor: Corruptor, model_folder: ModelFolder) -> None:
    program = (
        "import hashlib, sys\n"
        "from lethe.corruption.embeddings.corruptor import Corruptor\n"
        "from lethe.corruption.spec import CorruptSpec\n"
        f"c = Corruptor(sys.argv[1], {SECRET!r})\n"
        f"for s in (CorruptSpec(), {NOISE!r}):\n"
        f"    b = c.chat({user()!r}, {{(0, None): []}}, s, 'p')\n"
        "    print(hashlib.sha256(b['messages'][0]['content'][0]['data'].encode()).hexdigest())\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program, str(model_folder("parts"))],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and len(runs[0].split()) == 2


def test_completions_accept_text_and_token_ids(corruptor: Corruptor) -> None:
    ids = list(corruptor.prompt_tokenizer.completion(QUESTION)[0].ids)
    assert tensor(corruptor.completion(QUESTION, (), None, "")).shape == (len(ids), WIDTH)
    assert torch.equal(
        tensor(corruptor.completion(ids, (), None, "")), tensor(corruptor.completion(QUESTION, (), None, ""))
    )
    spec = NOISE.model_copy(update={"tokens": "evidence"})
    by_text, by_ids = (tensor(corruptor.completion(p, [(0, 3)], spec, "p")) for p in (QUESTION, ids))
    assert torch.equal(by_text, by_ids)
    clean = tensor(corruptor.completion(ids, (), None, ""))
    assert (by_ids != clean).any(dim=1).tolist() == [True] + [False] * (len(ids) - 1)


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_completion_is_refused(corruptor: Corruptor, prompt: Any) -> None:
    with pytest.raises(CorruptionError, match="no tokens"):
        corruptor.completion(prompt, (), NOISE, "p")


def test_empty_contents_stay_text(corruptor: Corruptor) -> None:
    body = user("")
    assert corruptor.chat(body, {(0, None): []}, NOISE, "p") == body


def test_values_that_overflow_are_refused(model_folder: ModelFolder, tmp_path: Any) -> None:
    folder = shutil.copytree(model_folder("parts"), tmp_path / "half")
    corruptor = Corruptor(folder, SECRET)
    save_file(
        {"wte.weight": torch.randn(corruptor.table.size, WIDTH, dtype=torch.float16)},
        folder / "model.safetensors",
    )
    spec = CorruptSpec(function="noise", sigma=1e6, sigma_unit="absolute", tokens="content")
    with pytest.raises(CorruptionError, match="too large for float16"):
        Corruptor(folder, SECRET).chat(user(), {(0, None): []}, spec, "p")


def test_the_error_for_too_many_dims_names_the_policy(corruptor: Corruptor) -> None:
    spec = CorruptSpec(function="zero", dims=WIDTH + 1)
    with pytest.raises(CorruptionError, match="policy 'p': dims 17"):
        corruptor.chat(user(), {(0, None): []}, spec, "p")


def test_a_token_without_a_row_is_refused(model_folder: ModelFolder, tmp_path: Any) -> None:
    folder = shutil.copytree(model_folder("parts"), tmp_path / "small")
    save_file({"wte.weight": torch.ones(10, WIDTH)}, folder / "model.safetensors")
    with pytest.raises(CorruptionError, match="not all in"):
        Corruptor(folder, SECRET).chat(user(), {(0, None): ()}, None, "")


def test_a_short_secret_is_refused(model_folder: ModelFolder) -> None:
    with pytest.raises(ValueError, match="secret"):
        Corruptor(model_folder("parts"), b"x")
