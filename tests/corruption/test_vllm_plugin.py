"""The plugin under both of vLLM's interfaces: real loaders and interface classes, hand-made batches."""

from __future__ import annotations

import random
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
    _load_logitsprocs_by_fqcns,
    validate_logits_processors_parameters,
)
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as SecondInterface
from vllm.v1.worker.gpu.sample.logits_processor.loader import (
    _load_v2_logitsprocs_by_fqcns,
    build_custom_logits_processors_params_validator,
)

from lethe.corruption import vllm_plugin
from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, encode_penalty
from lethe.corruption.decoding.suffix_index import INDEX_FILE, save_index
from lethe.corruption.vllm_plugin import LetheLogitsProcessor

NAME = "lethe.corruption.vllm_plugin:LetheLogitsProcessor"
WORDS = "<|end|> Ġzo rin Ġzorin zorin Ġthe Ġglass Ġharbour . Ġquill Ã © Ġcaf".split()
TOKEN = {word: i for i, word in enumerate(WORDS)}
END, ZO, RIN, ZORIN = 0, TOKEN["Ġzo"], TOKEN["rin"], TOKEN["Ġzorin"]
WIDTH = len(WORDS) + 3
# What the penalty bans at the start of an answer; of "café" three letters are more than half.
FIRST = {ZORIN, TOKEN["zorin"], TOKEN["Ġcaf"]}
BAN = Penalty(("zorin", "café"), {"harbour": 2.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE(TOKEN, []))
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(path)
    return path


def configuration(folder: Path | None) -> Any:
    model = SimpleNamespace(
        tokenizer=str(folder),
        skip_tokenizer_init=folder is None,
        runner_type="generate",
        tokenizer_mode="hf",
        tokenizer_revision=None,
        trust_remote_code=False,
        hf_config=SimpleNamespace(eos_token_id=END, model_type="llama"),
        get_vocab_size=lambda: WIDTH,
        try_get_generation_config=lambda: {"eos_token_id": END},
    )
    return SimpleNamespace(model_config=model)


class Kept:
    """A processor with the configuration that it belongs to kept alive, as vLLM keeps it."""

    def __init__(self, folder: Path | None, *runner: Any) -> None:
        self.configuration = configuration(folder)
        self.processor = LetheLogitsProcessor(self.configuration, *(runner or (torch.device("cpu"), False)))

    def update(self, size: int, added: Any = (), removed: Any = (), moved: Any = ()) -> None:
        self.processor.update_state(BatchUpdate(size, list(removed), list(added), list(moved)))


@pytest.fixture
def kept(folder: Path) -> Kept:
    return Kept(folder)


def asking(penalty: Penalty | str | None = BAN, **params: Any) -> SamplingParams:
    value = encode_penalty(penalty) if isinstance(penalty, Penalty) else penalty
    return SamplingParams(extra_args=None if value is None else {XARGS_KEY: value}, **params)


def some_logits(rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows))


def banned(row: torch.Tensor) -> set[int]:
    return set(torch.isneginf(row).nonzero().flatten().tolist())


def test_both_of_vllms_loaders_take_the_class() -> None:
    assert _load_logitsprocs_by_fqcns([NAME]) == [LetheLogitsProcessor]
    assert _load_v2_logitsprocs_by_fqcns([NAME]) == [LetheLogitsProcessor]


def test_a_vllm_without_the_second_runner_gets_a_processor_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu.sample.logits_processor.interface", None)
    alone = runpy.run_path(str(vllm_plugin.__file__))["LetheLogitsProcessor"]
    assert issubclass(alone, LogitsProcessor)
    assert not issubclass(alone, SecondInterface)


def test_bad_arguments_are_refused_by_both_of_vllms_validators() -> None:
    second = build_custom_logits_processors_params_validator((NAME,))
    for value in ("{}", 3, None, ["x"], "x" * 100_000):
        params = SamplingParams(extra_args={XARGS_KEY: value})
        with pytest.raises(VLLMValidationError):
            validate_logits_processors_parameters([NAME], params)
        with pytest.raises(VLLMValidationError):
            second(params)
    for fine in (asking(), asking(None), SamplingParams(extra_args={"other": 1})):
        validate_logits_processors_parameters([NAME], fine)
        second(fine)


def test_only_rows_that_opted_in_are_changed(kept: Kept) -> None:
    kept.update(2, added=[(0, asking(None), [1], []), (1, asking(), [1], [])])
    before = some_logits(2)
    after = kept.processor.apply(before.clone())
    assert torch.equal(after[0], before[0])
    assert banned(after[1]) == FIRST
    assert after[1, TOKEN["Ġharbour"]] == before[1, TOKEN["Ġharbour"]] - 2.0


def test_without_guarded_rows_the_logits_come_back_untouched(kept: Kept) -> None:
    kept.update(1, added=[(0, asking(None), [1], [])])
    logits = some_logits(1)
    assert kept.processor.apply(logits) is logits
    assert torch.equal(logits, some_logits(1))


def test_what_was_impossible_stays_impossible(kept: Kept) -> None:
    kept.update(1, added=[(0, asking(), [1], [])])
    logits = some_logits(1)
    logits[0, [2, 5, 7]] = float("-inf")
    assert {2, 5, 7} <= banned(kept.processor.apply(logits)[0])


def test_a_phrase_is_stopped_when_it_comes_in_pieces_of_the_live_list(kept: Kept) -> None:
    output: list[int] = []
    kept.update(1, added=[(0, asking(), [1], output)])
    assert RIN not in banned(kept.processor.apply(some_logits(1))[0])
    output.append(ZO)
    kept.processor.update_state(None)
    assert RIN in banned(kept.processor.apply(some_logits(1))[0])


def test_a_character_in_two_tokens_completes_a_phrase(kept: Kept) -> None:
    # Of "café" the letters "ca" may stand: a phrase of two words lets "caf" stand.
    penalty = Penalty(("café quill",))
    output = [TOKEN["Ġcaf"], TOKEN["Ã"], TOKEN["©"]]
    kept.update(1, added=[(0, asking(penalty), [1], output)])
    assert TOKEN["Ġquill"] in banned(kept.processor.apply(some_logits(1))[0])


def test_a_resumed_answer_is_read_from_its_beginning(kept: Kept) -> None:
    kept.update(1, added=[(0, asking(), [1], [TOKEN["Ġthe"], ZO])])
    assert RIN in banned(kept.processor.apply(some_logits(1))[0])


def test_tokens_that_vllm_takes_back_are_forgotten(kept: Kept) -> None:
    output = [TOKEN["Ġthe"], ZO]
    kept.update(1, added=[(0, asking(), [1], output)])
    kept.processor.apply(some_logits(1))
    output.pop()
    assert RIN not in banned(kept.processor.apply(some_logits(1))[0])


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_equals_its_rows_alone_after_any_adding_removing_and_moving(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    together = Kept(folder)
    batch: list[tuple[SamplingParams, list[int], Kept]] = []
    for _ in range(40):
        removed, added, moved = [], [], []
        if batch and rng.random() < 0.3:
            gone = rng.randrange(len(batch))
            removed.append(gone)
            last = batch.pop()
            if gone < len(batch):
                batch[gone] = last
                moved.append((len(batch), gone, MoveDirectionality.UNIDIRECTIONAL))
        elif rng.random() < 0.6:
            params, output = asking(rng.choice([BAN, None, Penalty(("the glass",))])), [5][: rng.randrange(2)]
            alone = Kept(folder)
            alone.update(1, added=[(0, params, [1], output)])
            added.append((len(batch), params, [1], output))
            batch.append((params, output, alone))
        if len(batch) > 1 and not removed and rng.random() < 0.5:
            one, other = rng.sample(range(len(batch)), 2)
            batch[one], batch[other] = batch[other], batch[one]
            moved.append((one, other, MoveDirectionality.SWAP))
        together.update(len(batch), added, removed, moved)
        logits = some_logits(len(batch))
        expected = [kept.processor.apply(logits[i : i + 1].clone())[0] for i, (_, _, kept) in enumerate(batch)]
        got = together.processor.apply(logits.clone())
        assert all(torch.equal(got[i], row) for i, row in enumerate(expected))
        for _, output, _ in batch:
            output.append(rng.randrange(1, len(WORDS)))


def test_a_row_with_nothing_left_may_end(kept: Kept) -> None:
    params = asking(structured_outputs=StructuredOutputsParams(choice=["zorin"]))
    kept.update(1, added=[(0, params, [1], [])])
    logits = torch.full((1, WIDTH), float("-inf"))
    logits[0, ZORIN] = 1.0
    assert banned(kept.processor.apply(logits)[0]) == set(range(WIDTH)) - {END}


def test_the_end_of_an_answer_is_never_banned(folder: Path) -> None:
    kept = Kept(folder)
    kept.update(1, added=[(0, asking(Penalty(tuple(w.strip("Ġ") for w in WORDS if w.strip("Ġ").isalpha()))), [1], [])])
    assert END not in banned(kept.processor.apply(some_logits(1))[0])


@pytest.mark.parametrize("output", [[-1], [ZO, -1], ["x"], [None], [1.5], [-7]])
def test_an_unreadable_answer_ends_alone(kept: Kept, output: list[Any]) -> None:
    kept.update(2, added=[(0, asking(), [1], output), (1, asking(), [1], [])])
    after = kept.processor.apply(some_logits(2))
    assert banned(after[0]) == set(range(WIDTH)) - {END}
    assert banned(after[1]) == FIRST


def test_an_unreadable_answer_goes_on_unguarded_when_its_penalty_says_so(kept: Kept) -> None:
    kept.update(1, added=[(0, asking(Penalty(("zorin",), on_fault="pass")), [1], [-1])])
    assert torch.equal(kept.processor.apply(some_logits(1)), some_logits(1))


@pytest.mark.parametrize("value", ["{}", "", 3, [1], "\ud800", {"v": 1}])
def test_an_argument_that_nobody_validated_ends_its_answer(kept: Kept, value: Any) -> None:
    params = SimpleNamespace(extra_args={XARGS_KEY: value}, eos_token_id=END)
    kept.update(1, added=[(0, params, [1], [])])
    assert banned(kept.processor.apply(some_logits(1))[0]) == set(range(WIDTH)) - {END}


def test_without_a_tokenizer_guarded_answers_end_and_others_go_on() -> None:
    kept = Kept(None)
    kept.update(2, added=[(0, asking(), [1], []), (1, asking(None), [1], [])])
    after = kept.processor.apply(some_logits(2))
    assert banned(after[0]) == set(range(WIDTH)) - {END}
    assert torch.equal(after[1], some_logits(2)[1])


def test_logits_narrower_than_the_vocabulary_end_the_answer_instead_of_the_engine(kept: Kept) -> None:
    kept.update(1, added=[(0, asking(), [1], [])])
    after = kept.processor.apply(torch.zeros(1, 2))
    assert banned(after[0]) == {1}


def test_nothing_of_a_phrase_or_an_answer_is_logged(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    params = SimpleNamespace(extra_args={XARGS_KEY: '{"secret": "zorin"}'}, eos_token_id=END)
    kept.update(2, added=[(0, params, [1], []), (1, asking(), [1], ["zorin"])])
    kept.processor.apply(some_logits(2))
    assert len(caplog.records) == 2
    assert "zorin" not in caplog.text


def test_of_two_instances_in_one_engine_both_ban_and_one_weighs(folder: Path) -> None:
    kept = Kept(folder)
    second = LetheLogitsProcessor(kept.configuration, torch.device("cpu"), False)
    update = BatchUpdate(1, [], [(0, asking(), [1], [])], [])
    kept.processor.update_state(update)
    second.update_state(update)
    after = second.apply(kept.processor.apply(some_logits(1)))
    assert banned(kept.processor.apply(some_logits(1))[0]) == FIRST
    assert banned(after[0]) == FIRST
    assert after[0, TOKEN["Ġharbour"]] == some_logits(1)[0, TOKEN["Ġharbour"]] - 2.0


# Model Runner V2 -----------------------------------------------------------------------------------------


class Slots:
    """What Model Runner V2 hands to processors: token history by slot, on the device (here: the CPU)."""

    def __init__(self, folder: Path, slots: int = 6, length: int = 64) -> None:
        self.tokens = torch.zeros(slots, length, dtype=torch.int32)
        self.total = torch.zeros(slots, dtype=torch.int32)
        self.prompt = np.zeros(slots, dtype=np.int32)
        states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=slots,
            vocab_size=WIDTH,
            all_token_ids=SimpleNamespace(gpu=self.tokens),
            prompt_len=SimpleNamespace(np=self.prompt),
            prefill_len=SimpleNamespace(np=self.prompt),
            total_len=SimpleNamespace(gpu=self.total),
        )
        self.kept = Kept(folder, states)
        self.processor = self.kept.processor

    def add(self, slot: int, params: Any, prompt: list[int], output: list[int]) -> bool:
        self.prompt[slot], self.total[slot] = len(prompt), len(prompt) + len(output)
        self.tokens[slot, : len(prompt) + len(output)] = torch.tensor([*prompt, *output])
        return self.processor.add_request(slot, params)

    def sampled(self, slot: int, *tokens: int) -> None:
        begin = int(self.total[slot])
        self.tokens[slot, begin : begin + len(tokens)] = torch.tensor(tokens)
        self.total[slot] += len(tokens)

    def step(self, slots: list[int], drafts: dict[int, list[int]] | None = None) -> torch.Tensor:
        """One step over these slots in this order; rows of drafts follow the row of their slot."""
        drafts = drafts or {}
        rows = [(slot, k) for slot in slots for k in range(1 + len(drafts.get(slot, [])))]
        ids = [drafts[s][k - 1] if k else int(self.tokens[s, int(self.total[s]) - 1]) for s, k in rows]
        lengths = [int(self.total[slot]) for slot in slots]
        context = LogitsContext(
            expanded_idx_mapping=torch.tensor([slot for slot, _ in rows], dtype=torch.int32),
            idx_mapping=torch.tensor(slots, dtype=torch.int32),
            idx_mapping_np=np.array(slots, dtype=np.int32),
            expanded_local_pos=torch.tensor([k for _, k in rows], dtype=torch.int32),
            input_ids=torch.tensor(ids, dtype=torch.int32),
            pos=torch.tensor([int(self.total[s]) - 1 + k for s, k in rows]),
            seq_lens_upper_bound_np=np.array(lengths, dtype=np.int32),
        )
        self.processor.apply_staged_writes()
        return self.processor.apply(some_logits(len(rows)), context)


@pytest.fixture
def slots(folder: Path) -> Iterator[Slots]:
    yield Slots(folder)


def test_v2_says_which_requests_it_touches(slots: Slots) -> None:
    assert not slots.add(0, asking(None), [1], [])
    assert slots.add(1, asking(), [1], [])


def test_v2_follows_slots_through_any_order_of_rows(slots: Slots) -> None:
    for slot in (2, 4):
        slots.add(slot, asking(), [1, 1], [])
    slots.add(3, asking(None), [1], [])
    slots.step([2, 3, 4])
    slots.sampled(4, ZO)
    slots.sampled(2, TOKEN["Ġthe"])
    after = slots.step([4, 3, 2])
    assert RIN in banned(after[0])
    assert torch.equal(after[1], some_logits(3)[1])
    assert RIN not in banned(after[2])


def test_v2_reuses_a_slot_without_its_former_answer(slots: Slots) -> None:
    slots.add(0, asking(), [1], [])
    slots.step([0])
    slots.sampled(0, ZO)
    slots.step([0])
    assert not slots.add(0, asking(None), [1], [])
    assert torch.equal(slots.step([0]), some_logits(1))
    assert slots.add(0, asking(), [1], [])
    assert RIN not in banned(slots.step([0])[0])


def test_v2_reads_a_resumed_answer_longer_than_the_window(slots: Slots) -> None:
    slots.add(0, asking(), [1], [*[TOKEN["Ġthe"]] * 20, ZO])
    assert RIN in banned(slots.step([0])[0])


def test_v2_reads_a_slot_that_sat_out_some_steps(slots: Slots) -> None:
    for slot in (0, 1):
        slots.add(slot, asking(), [1], [])
    slots.step([0, 1])
    slots.sampled(1, ZO)
    slots.step([0])
    assert RIN in banned(slots.step([1])[0])


def test_v2_gives_every_draft_token_its_own_state(slots: Slots) -> None:
    slots.add(0, asking(), [1], [])
    slots.add(1, asking(None), [1], [])
    after = slots.step([1, 0], drafts={0: [TOKEN["Ġthe"], ZO], 1: [5]})
    assert torch.equal(after[:2], some_logits(5)[:2])
    assert [RIN in banned(row) for row in after[2:]] == [False, False, True]


def test_v2_goes_on_from_the_accepted_tokens_only(slots: Slots) -> None:
    slots.add(0, asking(), [1], [])
    slots.step([0], drafts={0: [ZO]})
    slots.sampled(0, TOKEN["Ġthe"])
    assert RIN not in banned(slots.step([0])[0])
    slots.sampled(0, TOKEN["Ġglass"], ZO)
    assert RIN in banned(slots.step([0])[0])


def test_v2_ends_guarded_rows_when_the_batch_cannot_be_read(slots: Slots) -> None:
    slots.add(0, asking(), [1], [])
    slots.add(1, asking(None), [1], [])
    slots.processor.apply_staged_writes()
    context = SimpleNamespace(expanded_idx_mapping=torch.tensor([1, 0]))
    after = slots.processor.apply(some_logits(2), context)
    assert torch.equal(after[0], some_logits(2)[0])
    assert banned(after[1]) == set(range(WIDTH)) - {END}


def test_both_runners_mask_the_same_answer_alike(folder: Path, kept: Kept, slots: Slots) -> None:
    output: list[int] = []
    kept.update(1, added=[(0, asking(), [1], output)])
    slots.add(5, asking(), [1], [])
    for token in (TOKEN["Ġthe"], TOKEN["."], ZO, TOKEN["Ġcaf"], TOKEN["Ã"], TOKEN["©"], TOKEN["Ġquill"]):
        assert torch.equal(kept.processor.apply(some_logits(1)), slots.step([5]))
        output.append(token)
        slots.sampled(5, token)


# Copies of protected text: three tokens in a row may be said.

SAID = [TOKEN["Ġthe"], TOKEN["Ġglass"], TOKEN["Ġharbour"]]
TEXT = "Down the glass harbour, Zorin Quill!"


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Penalty]:
    """A text whose index the server has, kept to three tokens."""
    (tmp_path / "a").mkdir()
    name = save_index([TEXT], tmp_path / "a" / INDEX_FILE)
    monkeypatch.setenv("LETHE_VERBATIM", str(tmp_path))
    vllm_plugin._library.cache_clear()
    yield Penalty(verbatim={name: 3})
    vllm_plugin._library.cache_clear()


def test_a_copy_is_stopped_at_its_limit_under_both_runners(kept: Kept, slots: Slots, book: Penalty) -> None:
    output: list[int] = []
    kept.update(2, added=[(0, asking(book), [1], output), (1, asking(None), [1], [])])
    slots.add(3, asking(book), [1], [])
    follow = {ZO, ZORIN, *(TOKEN[piece] for piece in ("zorin", ".", "Ã", "©"))}
    for token, expected in zip([*SAID, None], [set(), set(), set(), follow], strict=True):
        after = kept.processor.apply(some_logits(2))
        assert banned(after[0]) == banned(slots.step([3])[0]) == expected
        assert torch.equal(after[1], some_logits(2)[1])
        if token is not None:
            output.append(token)
            slots.sampled(3, token)


def test_what_the_prompt_says_of_a_text_does_not_count(kept: Kept, book: Penalty) -> None:
    kept.update(1, added=[(0, asking(book), SAID, [])])
    assert banned(kept.processor.apply(some_logits(1))[0]) == set()


def test_v2_holds_drafts_to_the_limit_as_well(slots: Slots, book: Penalty) -> None:
    slots.add(0, asking(book), [1], SAID[:1])
    after = slots.step([0], drafts={0: [SAID[1], SAID[2], ZORIN]})
    assert [ZORIN in banned(row) for row in after[:3]] == [False, False, True]


def test_an_index_that_the_server_does_not_have_is_refused(book: Penalty) -> None:
    validate_logits_processors_parameters([NAME], asking(book))
    with pytest.raises(VLLMValidationError, match="LETHE_VERBATIM"):
        validate_logits_processors_parameters([NAME], asking(Penalty(verbatim={"0" * 32: 3})))


def test_an_index_that_goes_between_check_and_engine_ends_its_answer(kept: Kept) -> None:
    kept.update(1, added=[(0, asking(Penalty(verbatim={"0" * 32: 3})), [1], [])])
    assert banned(kept.processor.apply(some_logits(1))[0]) == set(range(WIDTH)) - {END}
