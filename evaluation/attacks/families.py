"""The attack families: all named ways to evade the detector that `lethe attack` tries.

A family turns a prompt into a request. Applied to prompts that must pass, it also measures false alarms. Knows no
classifier; `evaluation/attacks/runner.py` counts the results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from lethe.evaluation.attacks.jailbreak_templates import JailbreakTemplate
from lethe.evaluation.attacks.perturbations import (
    ENCODINGS,
    LETTERS,
    PERTURBATIONS,
    PLAIN_WORDS,
    SURROUNDINGS,
    UNICODE,
    Perturbation,
)
from lethe.evaluation.attacks.requests import (
    CARRIERS,
    AttackRequest,
    Carrier,
    Filler,
    chat_message,
    chat_request,
    plain_request,
)

# Tokens of filler around a prompt, in the families of long and of medium length.
LONG_TOKENS: Final = 8000
MEDIUM_TOKENS: Final = 400
# A family takes every n-th prompt of the sample; n grows with the length of its requests, since judging time does too.
EVERY_PROMPT, EVERY_5TH, EVERY_20TH = 1, 5, 20

Attack = Callable[[str, int, Random], tuple[AttackRequest, str]]


@dataclass(frozen=True)
class AttackFamily:
    """One named kind of attack.

    one_in: the family takes every `one_in`-th prompt of the sample. attack: (prompt, its number in the sample, rng) →
    the request and the name of the variant ("" if the family has none).
    """

    name: str
    about: str
    one_in: int
    attack: Attack


def attack_families(templates: Mapping[str, Sequence[JailbreakTemplate]], filler: Filler) -> list[AttackFamily]:
    """All families, in the order of the report. templates: jailbreak templates by group."""
    families = [_carrier_family("plain", CARRIERS["plain"])]
    families += [_perturbation_family(name, perturb) for name, perturb in PERTURBATIONS.items()]
    families += [_carrier_family(name, carrier) for name, carrier in CARRIERS.items() if name != "plain"]
    families += [_template_family(f"wrappers:{group}", texts) for group, texts in templates.items()]
    without_placeholder = [
        template for texts in templates.values() for template in texts if not template.has_placeholder
    ]
    if without_placeholder:
        families.append(_earlier_turn_family("wrappers-as-earlier-turn", without_placeholder))
    families += [
        _long_text_family(
            "buried", "Inside a sentence of ordinary text", filler.inside_sentence(MEDIUM_TOKENS), EVERY_5TH
        ),
        _long_text_family(
            "split-over-long-turns",
            "Split over user turns with ordinary text between them",
            filler.over_many_turns(2 * MEDIUM_TOKENS),
            EVERY_5TH,
        ),
        _long_text_family(
            "filler-start", "Before 8,000 tokens of ordinary text", filler.around(0.0, LONG_TOKENS), EVERY_20TH
        ),
        _long_text_family(
            "filler-middle",
            "In the middle of 8,000 tokens of ordinary text",
            filler.around(0.5, LONG_TOKENS),
            EVERY_20TH,
        ),
        _long_text_family(
            "filler-end", "After 8,000 tokens of ordinary text", filler.around(1.0, LONG_TOKENS), EVERY_20TH
        ),
        _combined_family("mix", templates),
    ]
    return families


def _perturbation_family(name: str, perturb: Perturbation) -> AttackFamily:
    about = (
        _first_line(perturb)
        if perturb.__doc__
        else f"{name.removesuffix('-in-sentence')} with the request to decode it".capitalize()
    )
    return AttackFamily(name, about, EVERY_PROMPT, lambda text, _, rng: (plain_request(perturb(text, rng), rng), ""))


def _carrier_family(name: str, carrier: Carrier) -> AttackFamily:
    return AttackFamily(name, _first_line(carrier), EVERY_PROMPT, lambda text, _, rng: (carrier(text, rng), ""))


def _long_text_family(name: str, about: str, carrier: Carrier, one_in: int) -> AttackFamily:
    return AttackFamily(name, about, one_in, lambda text, _, rng: (carrier(text, rng), ""))


def _template_family(name: str, templates: Sequence[JailbreakTemplate]) -> AttackFamily:
    def attack(text: str, number: int, rng: Random) -> tuple[AttackRequest, str]:
        template = templates[number % len(templates)]
        return chat_request([chat_message(template.fill(text))]), template.name

    return AttackFamily(name, f"Inside {len(templates)} jailbreak templates in turn", EVERY_5TH, attack)


def _earlier_turn_family(name: str, templates: Sequence[JailbreakTemplate]) -> AttackFamily:
    def attack(text: str, number: int, rng: Random) -> tuple[AttackRequest, str]:
        template = templates[number % len(templates)]
        messages = [
            chat_message(template.text, rng.choice(("user", "system"))),
            chat_message("I understand.", "assistant"),
        ]
        return chat_request([*messages, chat_message(text)]), template.name

    return AttackFamily(name, f"After {len(templates)} jailbreak templates as an earlier message", EVERY_5TH, attack)


def _combined_family(name: str, templates: Mapping[str, Sequence[JailbreakTemplate]]) -> AttackFamily:
    """A perturbation of words or letters, inside another perturbation, a carrier or a jailbreak template."""
    inner = {**PLAIN_WORDS, **UNICODE, **LETTERS}
    around = {**ENCODINGS, **SURROUNDINGS}
    # Short templates only (in characters): this family takes every prompt of the sample.
    short = [template for texts in templates.values() for template in texts if len(template.text) < 800]
    splits = {key: carrier for key, carrier in CARRIERS.items() if key.startswith(("split-over", "in-"))}

    def attack(text: str, number: int, rng: Random) -> tuple[AttackRequest, str]:
        first = rng.choice(sorted(inner))
        perturbed = inner[first](text, rng)
        kind = rng.choice(("around", "around", "carrier", "wrapper" if short else "carrier"))
        if kind == "around":
            second = rng.choice(sorted(around))
            return plain_request(around[second](perturbed, rng), rng), f"{first} + {second}"
        if kind == "carrier":
            second = rng.choice(sorted(splits))
            return splits[second](perturbed, rng), f"{first} + {second}"
        template = rng.choice(short)
        return chat_request([chat_message(template.fill(perturbed))]), f"{first} + {template.name}"

    return AttackFamily(name, "Two random families, one inside the other", EVERY_PROMPT, attack)


def _first_line(function: Perturbation | Carrier) -> str:
    return (function.__doc__ or "").splitlines()[0].rstrip(".")
