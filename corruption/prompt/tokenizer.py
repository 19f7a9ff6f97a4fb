"""A served model's tokenizer and chat template, read from its folder as `transformers` reads them for vLLM.

`transformers` builds some families' tokenizers anew from their vocabulary, with rules of its own. What it makes
of them can differ from tokenizer.json; the parity probe compares ids with vLLM's, and a folder that
`save_pretrained` wrote holds what `transformers` makes. Knows no request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from lethe.corruption.prompt.chat_template import special_text

_FIELDS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class ModelTokenizer:
    """backend: the tokenizer, without truncation and padding; it keeps no state between calls.

    named: special tokens by the names that templates use, such as `eos_token`. templates: by name.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ValueError naming folder and file when there is no usable tokenizer."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"model folder {folder} holds no tokenizer.json; transformers' AutoTokenizer can write it there: "
                "from_pretrained(folder).save_pretrained(folder)"
            )
        try:
            self.backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers package raises nothing more special
            raise ValueError(f"{path}: no usable tokenizer: {error}") from error
        self.backend.no_truncation()
        self.backend.no_padding()
        config = _config(folder)
        self.named = _named(config)
        self.templates = _templates(folder, config)
        self._add(config)

    def _add(self, config: Mapping[str, Any]) -> None:
        """Tokens of the configuration that tokenizer.json lacks, or knows with other properties."""
        there = {repr(token) for token in self.backend.get_added_tokens_decoder().values()}
        listed = config.get("added_tokens_decoder") or {}
        missing = [
            token
            for _, value in sorted(listed.items(), key=lambda item: int(item[0]))
            if repr(token := _token(value)) not in there
        ]
        known = {token.content for token in self.backend.get_added_tokens_decoder().values()}
        known |= {token.content for token in missing}
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
        more = [] if isinstance(extra, Mapping) else list(filter(None, map(special_text, extra)))
        self.special = frozenset([*self.named.values(), *more])
        missing += [
            AddedToken(text, special=True) for text in dict.fromkeys([*self.named.values(), *more]) if text not in known
        ]
        if missing:
            self.backend.add_tokens(missing)
        self.backend.encode_special_tokens = config.get("split_special_tokens") is True

    def id(self, name: str) -> int | None:
        """The id of a named special token; None where there is none."""
        text = self.named.get(name)
        return None if text is None else self.backend.token_to_id(text)

    def special_ids(self) -> frozenset[int]:
        """Tokens that are not made of text: control tokens and everything added to the vocabulary."""
        named = (self.backend.token_to_id(text) for text in self.special)
        return frozenset(i for i in named if i is not None) | frozenset(self.backend.get_added_tokens_decoder())

    def template(self, given: str | None, *, tools: bool) -> str:
        """The template in use. given: a template, or the name of one. Raises ValueError when there is none."""
        if given is not None:
            return self.templates.get(given, given)
        for name in (["tool_use"] if tools else []) + ["default"]:
            if name in self.templates:
                return self.templates[name]
        raise ValueError("the model has no chat template")


def _token(value: Mapping[str, Any]) -> AddedToken:
    return AddedToken(value["content"], **{key: value[key] for key in _FIELDS if key in value})


def _config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; of folders from before it listed all tokens, special_tokens_map.json over it."""
    config = _object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= _object(folder / "special_tokens_map.json")
    return config


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} holds no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    extra = config.get("extra_special_tokens")
    given = {key: value for key, value in config.items() if key.endswith("_token")}
    given |= extra if isinstance(extra, Mapping) else {}
    return {key: text for key, value in given.items() if (text := special_text(value)) is not None}


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Files of their own stand before the configuration's entries."""
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (own := folder / "chat_template.jinja").is_file():
        files["default"] = own
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    given = config.get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    entries: Sequence[Any] = given if isinstance(given, list) else []
    return {entry["name"]: entry["template"] for entry in entries}
