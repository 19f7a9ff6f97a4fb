"""The plugin under both of vLLM's interfaces: with vLLM's loaders and interface classes, and hand-made batches."""

from __future__ import annotations

import random
import runpy
import subprocess
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
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.loader import (
    _load_v2_logitsprocs_by_fqcns,
    build_custom_logits_processors_params_validator,
)

from lethe.corruption import vllm_plugin
from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, encode_penalty
from lethe.corruption.decoding.suffix_index import INDEX_FILE, save_index
from lethe.corruption.vllm_plugin import LetheLogitsProcessor

CLASS_NAME = "lethe.corruption.vllm_plugin:LetheLogitsProcessor"
WORDS = "<|end|> Ġzo rin Ġzorin zorin Ġthe Ġglass Ġharbour . Ġquill Ã © Ġcaf".split()
TOKEN = {word: i for i, word in enumerate(WORDS)}
END, ZO, RIN, ZORIN = 0, TOKEN["Ġzo"], TOKEN["rin"], TOKEN["Ġzorin"]
WIDTH = len(WORDS) + 3
# A prompt that begins no phrase.
PROMPT = [TOKEN["Ġthe"]]
# Tokens that BAN bans at the start of an answer. " caf" is more than half of "café".
BANNED_AT_START = {ZORIN, TOKEN["zorin"], TOKEN["Ġcaf"]}
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


class Engine:
    """A processor and its configuration, which vLLM keeps alive too."""

    def __init__(self, folder: Path | None, *runner: Any) -> None:
        self.configuration = configuration(folder)
        self.processor = LetheLogitsProcessor(self.configuration, *(runner or (torch.device("cpu"), False)))

    def update(self, size: int, added: Any = (), removed: Any = (), moved: Any = ()) -> None:
        self.processor.update_state(BatchUpdate(size, list(removed), list(added), list(moved)))


@pytest.fixture
def engine(folder: Path) -> Engine:
    return Engine(folder)


def params_with(penalty: Penalty | str | None = BAN, **params: Any) -> SamplingParams:
    value = encode_penalty(penalty) if isinstance(penalty, Penalty) else penalty
    return SamplingParams(extra_args=None if value is None else {XARGS_KEY: value}, **params)


def random_logits(rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows))


def banned(row: torch.Tensor) -> set[int]:
    return set(torch.isneginf(row).nonzero().flatten().tolist())


def test_both_loaders_of_vllm_accept_the_class() -> None:
    assert _load_logitsprocs_by_fqcns([CLASS_NAME]) == [LetheLogitsProcessor]
    assert _load_v2_logitsprocs_by_fqcns([CLASS_NAME]) == [LetheLogitsProcessor]


def test_without_model_runner_v2_it_is_a_v1_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu.sample.logits_processor.interface", None)
    plugin_class = runpy.run_path(str(vllm_plugin.__file__))["LetheLogitsProcessor"]
    assert issubclass(plugin_class, LogitsProcessor)
    assert not issubclass(plugin_class, V2LogitsProcessor)


def test_both_validators_refuse_malformed_penalties() -> None:
    validate_v2 = build_custom_logits_processors_params_validator((CLASS_NAME,))
    for value in ("{}", 3, None, ["x"], "x" * 100_000):
        params = SamplingParams(extra_args={XARGS_KEY: value})
        with pytest.raises(VLLMValidationError):
            validate_logits_processors_parameters([CLASS_NAME], params)
        with pytest.raises(VLLMValidationError):
            validate_v2(params)
    for valid in (params_with(), params_with(None), SamplingParams(extra_args={"other": 1})):
        validate_logits_processors_parameters([CLASS_NAME], valid)
        validate_v2(valid)


def test_only_rows_of_guarded_requests_change(engine: Engine) -> None:
    engine.update(2, added=[(0, params_with(None), PROMPT, []), (1, params_with(), PROMPT, [])])
    before = random_logits(2)
    after = engine.processor.apply(before.clone())
    assert torch.equal(after[0], before[0])
    assert banned(after[1]) == BANNED_AT_START
    assert after[1, TOKEN["Ġharbour"]] == before[1, TOKEN["Ġharbour"]] - 2.0


def test_without_guarded_requests_logits_are_unchanged(engine: Engine) -> None:
    engine.update(1, added=[(0, params_with(None), PROMPT, [])])
    logits = random_logits(1)
    assert engine.processor.apply(logits) is logits
    assert torch.equal(logits, random_logits(1))


def test_banned_logits_of_others_stay_banned(engine: Engine) -> None:
    engine.update(1, added=[(0, params_with(), PROMPT, [])])
    logits = random_logits(1)
    logits[0, [2, 5, 7]] = float("-inf")
    assert {2, 5, 7} <= banned(engine.processor.apply(logits)[0])


def test_a_phrase_in_several_tokens_is_stopped(engine: Engine) -> None:
    output: list[int] = []
    engine.update(1, added=[(0, params_with(), PROMPT, output)])
    assert RIN not in banned(engine.processor.apply(random_logits(1))[0])
    output.append(ZO)
    engine.processor.update_state(None)
    assert RIN in banned(engine.processor.apply(random_logits(1))[0])


def test_a_phrase_that_the_prompt_begins_is_not_completed(engine: Engine, slots: Slots) -> None:
    engine.update(2, added=[(0, params_with(), [*PROMPT, ZO], []), (1, params_with(), PROMPT, [])])
    slots.add(1, params_with(), [*PROMPT, ZO], [])
    slots.add(2, params_with(), PROMPT, [])
    for after in (engine.processor.apply(random_logits(2)), slots.step([1, 2])):
        assert banned(after[0]) == BANNED_AT_START | {RIN}
        assert banned(after[1]) == BANNED_AT_START


def test_a_phrase_begun_before_special_tokens_is_not_completed(engine: Engine) -> None:
    engine.update(1, added=[(0, params_with(), [ZO, END, END], [])])
    assert RIN in banned(engine.processor.apply(random_logits(1))[0])


def test_without_prompt_ids_the_penalty_says_what_was_begun(engine: Engine) -> None:
    penalty = Penalty(("zorin",), begun=("zo",))
    engine.update(1, added=[(0, params_with(penalty), None, [])])
    assert RIN in banned(engine.processor.apply(random_logits(1))[0])


def test_a_restarted_answer_still_continues_the_prompt(engine: Engine) -> None:
    output: list[int] = [TOKEN["Ġthe"]]
    engine.update(1, added=[(0, params_with(), [*PROMPT, ZO], output)])
    assert RIN not in banned(engine.processor.apply(random_logits(1))[0])
    output.clear()
    assert RIN in banned(engine.processor.apply(random_logits(1))[0])


def test_a_character_split_over_two_tokens_completes_a_phrase(engine: Engine) -> None:
    # Of "café" alone, " caf" would be banned already; of two words it is less than half.
    penalty = Penalty(("café quill",))
    output = [TOKEN["Ġcaf"], TOKEN["Ã"], TOKEN["©"]]
    engine.update(1, added=[(0, params_with(penalty), PROMPT, output)])
    assert TOKEN["Ġquill"] in banned(engine.processor.apply(random_logits(1))[0])


def test_a_resumed_answer_is_read_from_its_beginning(engine: Engine) -> None:
    engine.update(1, added=[(0, params_with(), PROMPT, [TOKEN["Ġthe"], ZO])])
    assert RIN in banned(engine.processor.apply(random_logits(1))[0])


def test_tokens_that_vllm_takes_back_are_forgotten(engine: Engine) -> None:
    output = [TOKEN["Ġthe"], ZO]
    engine.update(1, added=[(0, params_with(), PROMPT, output)])
    engine.processor.apply(random_logits(1))
    output.pop()
    assert RIN not in banned(engine.processor.apply(random_logits(1))[0])


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_equals_its_rows_alone_after_random_updates(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    shared = Engine(folder)
    batch: list[tuple[SamplingParams, list[int], Engine]] = []
    for _ in range(40):
        removed, added, moved = [], [], []
        if batch and rng.random() < 0.3:
            index = rng.randrange(len(batch))
            removed.append(index)
            last = batch.pop()
            if index < len(batch):
                batch[index] = last
                moved.append((len(batch), index, MoveDirectionality.UNIDIRECTIONAL))
        elif rng.random() < 0.6:
            params, output = params_with(rng.choice([BAN, None, Penalty(("the glass",))])), [5][: rng.randrange(2)]
            alone = Engine(folder)
            alone.update(1, added=[(0, params, PROMPT, output)])
            added.append((len(batch), params, PROMPT, output))
            batch.append((params, output, alone))
        if len(batch) > 1 and not removed and rng.random() < 0.5:
            one, other = rng.sample(range(len(batch)), 2)
            batch[one], batch[other] = batch[other], batch[one]
            moved.append((one, other, MoveDirectionality.SWAP))
        shared.update(len(batch), added, removed, moved)
        logits = random_logits(len(batch))
        expected = [engine.processor.apply(logits[i : i + 1].clone())[0] for i, (_, _, engine) in enumerate(batch)]
        got = shared.processor.apply(logits.clone())
        assert all(torch.equal(got[i], row) for i, row in enumerate(expected))
        for _, output, _ in batch:
            output.append(rng.randrange(1, len(WORDS)))


def test_a_row_without_allowed_tokens_may_end(engine: Engine) -> None:
    params = params_with(structured_outputs=StructuredOutputsParams(choice=["zorin"]))
    engine.update(1, added=[(0, params, PROMPT, [])])
    logits = torch.full((1, WIDTH), float("-inf"))
    logits[0, ZORIN] = 1.0
    assert banned(engine.processor.apply(logits)[0]) == set(range(WIDTH)) - {END}


def test_the_end_token_is_never_banned(folder: Path) -> None:
    engine = Engine(folder)
    engine.update(
        1, added=[(0, params_with(Penalty(tuple(w.strip("Ġ") for w in WORDS if w.strip("Ġ").isalpha()))), PROMPT, [])]
    )
    assert END not in banned(engine.processor.apply(random_logits(1))[0])


@pytest.mark.parametrize("output", [[-1], [ZO, -1], ["x"], [None], [1.5], [-7]])
def test_a_fault_in_one_answer_ends_only_that_answer(engine: Engine, output: list[Any]) -> None:
    engine.update(2, added=[(0, params_with(), PROMPT, output), (1, params_with(), PROMPT, [])])
    after = engine.processor.apply(random_logits(2))
    assert banned(after[0]) == set(range(WIDTH)) - {END}
    assert banned(after[1]) == BANNED_AT_START


def test_on_fault_pass_continues_unguarded_after_a_fault(engine: Engine) -> None:
    engine.update(1, added=[(0, params_with(Penalty(("zorin",), on_fault="pass")), PROMPT, [-1])])
    assert torch.equal(engine.processor.apply(random_logits(1)), random_logits(1))


@pytest.mark.parametrize("value", ["{}", "", 3, PROMPT, "\ud800", {"v": 1}])
def test_an_unvalidated_malformed_penalty_ends_its_answer(engine: Engine, value: Any) -> None:
    params = SimpleNamespace(extra_args={XARGS_KEY: value}, eos_token_id=END)
    engine.update(1, added=[(0, params, PROMPT, [])])
    assert banned(engine.processor.apply(random_logits(1))[0]) == set(range(WIDTH)) - {END}


def test_without_a_tokenizer_only_guarded_answers_end() -> None:
    engine = Engine(None)
    engine.update(2, added=[(0, params_with(), PROMPT, []), (1, params_with(None), PROMPT, [])])
    after = engine.processor.apply(random_logits(2))
    assert banned(after[0]) == set(range(WIDTH)) - {END}
    assert torch.equal(after[1], random_logits(2)[1])


def test_too_narrow_logits_end_the_answer_not_the_engine(engine: Engine) -> None:
    engine.update(1, added=[(0, params_with(), PROMPT, [])])
    after = engine.processor.apply(torch.zeros(1, 2))
    assert banned(after[0]) == {1}


def test_phrases_and_answers_are_never_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    params = SimpleNamespace(extra_args={XARGS_KEY: '{"secret": "zorin"}'}, eos_token_id=END)
    engine.update(2, added=[(0, params, PROMPT, []), (1, params_with(), PROMPT, ["zorin"])])
    engine.processor.apply(random_logits(2))
    assert len(caplog.records) == 2
    assert "zorin" not in caplog.text


def test_two_instances_both_ban_but_subtract_weights_once(folder: Path) -> None:
    engine = Engine(folder)
    second = LetheLogitsProcessor(engine.configuration, torch.device("cpu"), False)
    update = BatchUpdate(1, [], [(0, params_with(), PROMPT, [])], [])
    engine.processor.update_state(update)
    second.update_state(update)
    after = second.apply(engine.processor.apply(random_logits(1)))
    assert banned(engine.processor.apply(random_logits(1))[0]) == BANNED_AT_START
    assert banned(after[0]) == BANNED_AT_START
    assert after[0, TOKEN["Ġharbour"]] == random_logits(1)[0, TOKEN["Ġharbour"]] - 2.0


# Model Runner V2 -----------------------------------------------------------------------------------------


class Slots:
    """Model Runner V2's request states: token history by slot, on the device (here: the CPU)."""

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
        self.engine = Engine(folder, states)
        self.processor = self.engine.processor

    def add(self, slot: int, params: Any, prompt: list[int], output: list[int]) -> bool:
        self.prompt[slot], self.total[slot] = len(prompt), len(prompt) + len(output)
        self.tokens[slot, : len(prompt) + len(output)] = torch.tensor([*prompt, *output])
        return self.processor.add_request(slot, params)

    def append(self, slot: int, *tokens: int) -> None:
        begin = int(self.total[slot])
        self.tokens[slot, begin : begin + len(tokens)] = torch.tensor(tokens)
        self.total[slot] += len(tokens)

    def step(self, slots: list[int], drafts: dict[int, list[int]] | None = None) -> torch.Tensor:
        """Run one step over these slots in this order; rows of drafts follow the row of their slot."""
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
        return self.processor.apply(random_logits(len(rows)), context)


@pytest.fixture
def slots(folder: Path) -> Iterator[Slots]:
    yield Slots(folder)


def test_v2_add_request_returns_whether_it_is_guarded(slots: Slots) -> None:
    assert not slots.add(0, params_with(None), PROMPT, [])
    assert slots.add(1, params_with(), PROMPT, [])


def test_v2_follows_slots_when_rows_are_reordered(slots: Slots) -> None:
    for slot in (2, 4):
        slots.add(slot, params_with(), PROMPT * 2, [])
    slots.add(3, params_with(None), PROMPT, [])
    slots.step([2, 3, 4])
    slots.append(4, ZO)
    slots.append(2, TOKEN["Ġthe"])
    after = slots.step([4, 3, 2])
    assert RIN in banned(after[0])
    assert torch.equal(after[1], random_logits(3)[1])
    assert RIN not in banned(after[2])


def test_v2_forgets_the_former_answer_of_a_reused_slot(slots: Slots) -> None:
    slots.add(0, params_with(), PROMPT, [])
    slots.step([0])
    slots.append(0, ZO)
    slots.step([0])
    assert not slots.add(0, params_with(None), PROMPT, [])
    assert torch.equal(slots.step([0]), random_logits(1))
    assert slots.add(0, params_with(), PROMPT, [])
    assert RIN not in banned(slots.step([0])[0])


def test_v2_reads_more_tokens_than_were_copied_ahead(slots: Slots) -> None:
    slots.add(0, params_with(), PROMPT, [*[TOKEN["Ġthe"]] * 20, ZO])
    assert RIN in banned(slots.step([0])[0])


def test_v2_reads_a_slot_that_was_left_out_of_some_steps(slots: Slots) -> None:
    for slot in (0, 1):
        slots.add(slot, params_with(), PROMPT, [])
    slots.step([0, 1])
    slots.append(1, ZO)
    slots.step([0])
    assert RIN in banned(slots.step([1])[0])


def test_v2_gives_each_draft_token_its_own_state(slots: Slots) -> None:
    slots.add(0, params_with(), PROMPT, [])
    slots.add(1, params_with(None), PROMPT, [])
    after = slots.step([1, 0], drafts={0: [TOKEN["Ġthe"], ZO], 1: [5]})
    assert torch.equal(after[:2], random_logits(5)[:2])
    assert [RIN in banned(row) for row in after[2:]] == [False, False, True]


def test_v2_continues_from_accepted_tokens_only(slots: Slots) -> None:
    slots.add(0, params_with(), PROMPT, [])
    slots.step([0], drafts={0: [ZO]})
    slots.append(0, TOKEN["Ġthe"])
    assert RIN not in banned(slots.step([0])[0])
    slots.append(0, TOKEN["Ġglass"], ZO)
    assert RIN in banned(slots.step([0])[0])


def test_v2_ends_guarded_rows_when_the_batch_is_unreadable(slots: Slots) -> None:
    slots.add(0, params_with(), PROMPT, [])
    slots.add(1, params_with(None), PROMPT, [])
    slots.processor.apply_staged_writes()
    context = SimpleNamespace(expanded_idx_mapping=torch.tensor([1, 0]))
    after = slots.processor.apply(random_logits(2), context)
    assert torch.equal(after[0], random_logits(2)[0])
    assert banned(after[1]) == set(range(WIDTH)) - {END}


def test_both_runners_mask_the_same_answer_alike(folder: Path, engine: Engine, slots: Slots) -> None:
    output: list[int] = []
    engine.update(1, added=[(0, params_with(), PROMPT, output)])
    slots.add(5, params_with(), PROMPT, [])
    for token in (TOKEN["Ġthe"], TOKEN["."], ZO, TOKEN["Ġcaf"], TOKEN["Ã"], TOKEN["©"], TOKEN["Ġquill"]):
        assert torch.equal(engine.processor.apply(random_logits(1)), slots.step([5]))
        output.append(token)
        slots.append(5, token)


# Copies of protected text: three tokens in a row are allowed.

COPIED = [TOKEN["Ġthe"], TOKEN["Ġglass"], TOKEN["Ġharbour"]]
TEXT = "Down the glass harbour, Zorin Quill!"


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Penalty]:
    """A penalty that limits copies of a text to three tokens; the server has the index of the text."""
    (tmp_path / "a").mkdir()
    name = save_index([TEXT], tmp_path / "a" / INDEX_FILE)
    monkeypatch.setenv("LETHE_VERBATIM", str(tmp_path))
    vllm_plugin._index_folder.cache_clear()
    yield Penalty(verbatim={name: 3})
    vllm_plugin._index_folder.cache_clear()


def test_both_runners_stop_a_copy_at_its_limit(engine: Engine, slots: Slots, book: Penalty) -> None:
    output: list[int] = []
    engine.update(2, added=[(0, params_with(book), PROMPT, output), (1, params_with(None), PROMPT, [])])
    slots.add(3, params_with(book), PROMPT, [])
    continuing = {ZO, ZORIN, *(TOKEN[piece] for piece in ("zorin", ".", "Ã", "©"))}
    for token, expected in zip([*COPIED, None], [set(), set(), set(), continuing], strict=True):
        after = engine.processor.apply(random_logits(2))
        assert banned(after[0]) == banned(slots.step([3])[0]) == expected
        assert torch.equal(after[1], random_logits(2)[1])
        if token is not None:
            output.append(token)
            slots.append(3, token)


def test_copies_in_the_prompt_do_not_count(engine: Engine, book: Penalty) -> None:
    engine.update(1, added=[(0, params_with(book), COPIED, [])])
    assert banned(engine.processor.apply(random_logits(1))[0]) == set()


def test_v2_applies_the_copy_limit_to_drafts(slots: Slots, book: Penalty) -> None:
    slots.add(0, params_with(book), PROMPT, COPIED[:1])
    after = slots.step([0], drafts={0: [COPIED[1], COPIED[2], ZORIN]})
    assert [ZORIN in banned(row) for row in after[:3]] == [False, False, True]


def test_an_unknown_verbatim_index_is_refused(book: Penalty) -> None:
    validate_logits_processors_parameters([CLASS_NAME], params_with(book))
    with pytest.raises(VLLMValidationError, match="LETHE_VERBATIM"):
        validate_logits_processors_parameters([CLASS_NAME], params_with(Penalty(verbatim={"0" * 32: 3})))


def test_an_index_missing_in_the_engine_ends_the_answer(engine: Engine) -> None:
    engine.update(1, added=[(0, params_with(Penalty(verbatim={"0" * 32: 3})), PROMPT, [])])
    assert banned(engine.processor.apply(random_logits(1))[0]) == set(range(WIDTH)) - {END}


def test_the_plugin_imports_neither_server_nor_classifier() -> None:
    program = (
        "import sys\n"
        "import lethe.corruption.vllm_plugin\n"
        "print([m for m in sys.modules if m.startswith(('lethe.server', 'lethe.classifier', 'lethe.evaluation'))])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
