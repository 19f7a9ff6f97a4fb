"""A folder's tokenizer makes the ids that transformers' AutoTokenizer makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lethe.corruption.prompt.model_tokenizer import ModelTokenizer
from tests.corruption.conftest import ModelFolder

AWKWARD = [
    " two  spaces\u00a0and a\ttab ",
    "\n\n  indented:\n\tcode()",
    "cafe\u0301 na\u00efve 日本 🙂 \u200b",
    "I'll 1234567 3.14",
    "</s><s> <|user|>x<|end|> [PAD] <extra>",
]
TOKENS: dict[str, Any] = {
    "200": {"content": "<extra>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False},
    "2": {"content": "<|user|>", "lstrip": False, "rstrip": True, "single_word": False, "normalized": False},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "as saved": {},
    "a token more": {"pad_token": "[PAD]"},
    "extra special tokens": {"additional_special_tokens": ["<extra>", "<|end|>"]},
    "named extra tokens": {"extra_special_tokens": {"image_token": "<extra>"}},
    "tokens with properties": {"added_tokens_decoder": {k: v | {"special": True} for k, v in TOKENS.items()}},
    "tokens that are text": {"added_tokens_decoder": {k: v | {"special": False} for k, v in TOKENS.items()}},
    "special tokens as objects": {
        "eos_token": {"__type": "AddedToken", "content": "<|end|>", "lstrip": False, "rstrip": False,
                      "single_word": False, "normalized": False},
    },
    "special tokens are split": {"split_special_tokens": True},
    "a class of its own": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "bos is not ours to add": {"add_bos_token": True, "add_eos_token": True},
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def folder(request: pytest.FixtureRequest, model_folder: ModelFolder, tmp_path: Path) -> Path:
    model_dir = shutil.copytree(model_folder(), tmp_path / "model")
    config = model_dir / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | CONFIGS[request.param]))
    return model_dir


def test_ids_equal_those_of_transformers(folder: Path) -> None:
    ours, theirs = ModelTokenizer(folder), AutoTokenizer.from_pretrained(str(folder))
    for text in AWKWARD:
        for special in (False, True):
            ids = ours.backend.encode(text, add_special_tokens=special).ids
            assert ids == theirs(text, add_special_tokens=special)["input_ids"], text
    assert ours.backend.get_vocab_size() == len(theirs)
    assert ours.named == {k: v for k, v in theirs.special_tokens_map.items() if isinstance(v, str)}
    assert ours.special_ids() == {*theirs.all_special_ids, *theirs.get_added_vocab().values()}
    assert ours.id("eos_token") == theirs.eos_token_id and ours.id("mask_token") is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_any_text_has_the_same_ids(model_folder: ModelFolder, kind: str, text: str) -> None:
    model_dir = model_folder("marks", kind)
    if model_dir not in _pairs:
        _pairs[model_dir] = ModelTokenizer(model_dir), AutoTokenizer.from_pretrained(str(model_dir))
    ours, theirs = _pairs[model_dir]
    assert ours.backend.encode(text).ids == theirs(text)["input_ids"]


_pairs: dict[Path, tuple[ModelTokenizer, Any]] = {}


def test_special_tokens_map_of_older_folders_is_read(model_folder: ModelFolder, tmp_path: Path) -> None:
    model_dir = shutil.copytree(model_folder(), tmp_path / "model")
    (model_dir / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": {"content": "<|end|>"}, "eos_token": "<s>"})
    )
    theirs, ours = AutoTokenizer.from_pretrained(str(model_dir)), ModelTokenizer(model_dir)
    assert ours.named == theirs.special_tokens_map
    assert ours.named["pad_token"] == "<|end|>" and ours.named["eos_token"] == "<s>"


def test_template_files_are_found(model_folder: ModelFolder, tmp_path: Path) -> None:
    model_dir = shutil.copytree(model_folder(), tmp_path / "model")
    default_template = (model_dir / "chat_template.jinja").read_text()
    assert ModelTokenizer(model_dir).template(None, tools=True) == default_template
    (model_dir / "additional_chat_templates").mkdir()
    (model_dir / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    ours = ModelTokenizer(model_dir)
    theirs = AutoTokenizer.from_pretrained(str(model_dir))
    for tools in (None, [{}]):
        assert ours.template(None, tools=tools is not None) == theirs.get_chat_template(tools=tools)
    assert ours.template("tool_use", tools=False) == "with tools"
    assert ours.template("{{ 1 }}", tools=False) == "{{ 1 }}"


@pytest.mark.parametrize(
    "entry", ["plain", [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]]
)
def test_templates_in_the_configuration_are_found(model_folder: ModelFolder, tmp_path: Path, entry: Any) -> None:
    model_dir = shutil.copytree(model_folder(), tmp_path / "model")
    (model_dir / "chat_template.jinja").unlink()
    config = model_dir / "tokenizer_config.json"
    assert "chat_template" not in json.loads(config.read_text())
    with pytest.raises(ValueError, match="no chat template"):
        ModelTokenizer(model_dir).template(None, tools=False)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": entry}))
    theirs, ours = AutoTokenizer.from_pretrained(str(model_dir)), ModelTokenizer(model_dir)
    for tools in (None, [{}]):
        assert ours.template(None, tools=tools is not None) == theirs.get_chat_template(tools=tools)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "holds no tokenizer.json; .*save_pretrained"),
        ("tokenizer.json", "{}", "no usable tokenizer"),
        ("tokenizer_config.json", "{", "no valid JSON"),
        ("tokenizer_config.json", "[]", "a list, not an object"),
    ],
)
def test_errors_name_an_unusable_folder(
    model_folder: ModelFolder, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    model_dir = shutil.copytree(model_folder(), tmp_path / "model")
    (model_dir / file).unlink() if content is None else (model_dir / file).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        ModelTokenizer(model_dir)
    assert str(model_dir) in str(caught.value)
