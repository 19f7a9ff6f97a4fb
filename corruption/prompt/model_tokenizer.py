"""A served model's tokenizer and chat templates, read from its folder as `transformers` reads them for vLLM.

`transformers` rebuilds some families' tokenizers from their vocabulary with rules of its own, and the result can
differ from tokenizer.json. The parity probe compares ids with vLLM's. A folder written by `save_pretrained` holds the
tokenizer that `transformers` uses. This module knows no request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from lethe.corruption.prompt.chat_template import special_text

_TOKEN_PROPERTIES = ("single_word", "lstrip", "rstrip", "normalized", "special")


class ModelTokenizer:
    """The tokenizer and the templates of one folder.

    backend: the tokenizer, without truncation and padding; it keeps no state between calls. named: special tokens by
    the names that templates use, such as `eos_token`. templates: by name. special: the texts of all special tokens.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ValueError with folder and file when there is no usable tokenizer."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"model folder {folder} holds no tokenizer.json; transformers' AutoTokenizer can write it there: "
                "from_pretrained(folder).save_pretrained(folder)"
            )
        try:
            self.backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers package raises plain Exception
            raise ValueError(f"{path}: no usable tokenizer: {error}") from error
        self.backend.no_truncation()
        self.backend.no_padding()
        config = _tokenizer_config(folder)
        self.named = _named_special_tokens(config)
        self.templates = _chat_templates(folder, config)
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
        additional = [] if isinstance(extra, Mapping) else list(filter(None, map(special_text, extra)))
        self.special = frozenset([*self.named.values(), *additional])
        self._add_missing_tokens(config, additional)

    def _add_missing_tokens(self, config: Mapping[str, Any], additional: Sequence[str]) -> None:
        """Add the configuration's tokens that tokenizer.json lacks, or has with other properties."""
        present = self.backend.get_added_tokens_decoder().values()
        present_with_properties = {repr(token) for token in present}
        listed = config.get("added_tokens_decoder") or {}
        missing = [
            token
            for _, value in sorted(listed.items(), key=lambda item: int(item[0]))
            if repr(token := _added_token(value)) not in present_with_properties
        ]
        contents = {token.content for token in present} | {token.content for token in missing}
        special = dict.fromkeys([*self.named.values(), *additional])
        missing += [AddedToken(text, special=True) for text in special if text not in contents]
        if missing:
            self.backend.add_tokens(missing)
        self.backend.encode_special_tokens = config.get("split_special_tokens") is True

    def id(self, name: str) -> int | None:
        """Return the id of a named special token, such as `eos_token`; None where there is none."""
        text = self.named.get(name)
        return None if text is None else self.backend.token_to_id(text)

    def special_ids(self) -> frozenset[int]:
        """Return the ids of tokens that are not made of text: control tokens and all that were added."""
        special = (self.backend.token_to_id(text) for text in self.special)
        return frozenset(i for i in special if i is not None) | frozenset(self.backend.get_added_tokens_decoder())

    def template(self, override: str | None, *, tools: bool) -> str:
        """Return the chat template in use. Raises ValueError when there is none.

        override: a template, or the name of one of the folder's. tools: the request has tools.
        """
        if override is not None:
            return self.templates.get(override, override)
        for name in (["tool_use"] if tools else []) + ["default"]:
            if name in self.templates:
                return self.templates[name]
        raise ValueError("the model has no chat template")


def _added_token(value: Mapping[str, Any]) -> AddedToken:
    return AddedToken(value["content"], **{key: value[key] for key in _TOKEN_PROPERTIES if key in value})


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json. Older folders don't list all tokens there: special_tokens_map.json overrides it."""
    config = _json_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= _json_object(folder / "special_tokens_map.json")
    return config


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} holds no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _named_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    extra = config.get("extra_special_tokens")
    named = {key: value for key, value in config.items() if key.endswith("_token")}
    named |= extra if isinstance(extra, Mapping) else {}
    return {key: text for key, value in named.items() if (text := special_text(value)) is not None}


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates by name. Template files take precedence over the configuration's entries."""
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (default := folder / "chat_template.jinja").is_file():
        files["default"] = default
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    configured = config.get("chat_template")
    if isinstance(configured, str):
        return {"default": configured}
    entries: Sequence[Any] = configured if isinstance(configured, list) else []
    return {entry["name"]: entry["template"] for entry in entries}
