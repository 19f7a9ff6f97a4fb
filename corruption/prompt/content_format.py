"""Whether a chat template expects a message's content as a string or as a list of parts.

It repeats vLLM's detection, which `--chat-template-content-format` overrides.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import jinja2
from jinja2 import nodes

from lethe.corruption.prompt.chat_template import Generation

ContentFormat = Literal["string", "openai"]

# Rounds of following values through assignments of assignments. Chosen: templates in use need two or three.
_MAX_ROUNDS = 8


@lru_cache(maxsize=32)  # more templates than a gateway serves
def detect_content_format(template: str) -> ContentFormat:
    """Return "openai" if the template loops over the parts of a content, else "string".

    Follows values that come from a message's content through assignments and macro arguments, as vLLM does.
    """
    tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(template)
    names = {"content"}
    for _ in range(_MAX_ROUNDS):
        extended = names | _assigned_names(tree, names) | _argument_names(tree, names)
        if extended == names:
            break
        names = extended
    return "openai" if any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For)) else "string"


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    """Whether an expression is a message's content, or a variable in `names`."""
    while isinstance(node, (nodes.Filter, nodes.Test)) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _is_content(node.node, names)
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Name) and node.name in names


def _assigned_names(tree: nodes.Template, names: set[str]) -> set[str]:
    """The variables that a content is assigned to."""
    return {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names)
    }


def _argument_names(tree: nodes.Template, names: set[str]) -> set[str]:
    """The macro arguments that a content is passed as."""
    macros = {macro.name: [arg.name for arg in macro.args] for macro in tree.find_all(nodes.Macro)}
    arguments = set()
    for call in tree.find_all(nodes.Call):
        parameters = macros.get(call.node.name, []) if isinstance(call.node, nodes.Name) else []
        arguments |= {name for name, arg in zip(parameters, call.args, strict=False) if _is_content(arg, names)}
        arguments |= {pair.key for pair in call.kwargs if pair.key in parameters and _is_content(pair.value, names)}
    return arguments
