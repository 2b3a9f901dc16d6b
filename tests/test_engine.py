"""The engine against the plain loop, and its own promises: memory, order, shapes. Small models, float32, no cluster."""

from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from test_generators import drawn, forwards_of, keys_of, one_by_one, raw

from rsft_cluster.generators.base import Completion, Decoding, Refusal
from rsft_cluster.generators.engine.attention import Scoring, attend_causally
from rsft_cluster.generators.engine.blocks import BLOCK, PRIVATE, SHARED, BlockStore, LayerShape, block_bytes
from rsft_cluster.generators.engine.engine import Engine, Limits
from rsft_cluster.generators.engine.packing import PackedLinear
from rsft_cluster.generators.engine.probe import UnsupportedModelError, layer_shapes
from rsft_cluster.generators.engine.rows import listed
from rsft_cluster.generators.engine.session import Session
from rsft_cluster.generators.engine.steps import GraphSteps, PlainSteps, step
from rsft_cluster.generators.engine.trial import text_ids

ENGINE_FAMILIES = [family for family in models.FAMILIES if family not in models.BATCHED]
LONG = Decoding(temperature=0.9, top_p=0.97, max_tokens=2 * BLOCK + 6)
AROUND_A_BLOCK = (1, BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 7)
"""Letters of prompts; the tokens are one more."""


def letters(*lengths):
    return raw(*(("abcdefgh" * 20)[i : i + n] for i, n in enumerate(lengths)))


def engine_of(generator) -> Engine:
    assert isinstance(generator.decoder, Engine)
    return generator.decoder


def use(generator, **limits):
    """Give the generator's engine other limits."""
    engine = engine_of(generator)
    engine._limits = replace(engine._limits, **limits)
    engine.store = None


@pytest.fixture(scope="module")
def family_models(tmp_path_factory):
    """Every family's generator, with what the plain loop draws for the prompts around a block."""
    made = {}

    def get(family):
        if family not in made:
            generator = models.load_family(family, tmp_path_factory.mktemp(family), num_context_tokens=128)
            prompts = letters(*AROUND_A_BLOCK)
            keys = keys_of(prompts, 3)
            made[family] = generator, prompts, keys, one_by_one(generator, prompts, LONG, keys)
        return made[family]

    return get


@pytest.fixture
def llama(tmp_path):
    return models.load_family("llama", tmp_path, num_context_tokens=256)


# Exactness


@pytest.mark.parametrize("num_rows", [1, 4, 15, 64])
@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_any_number_of_rows_and_any_order_draw_what_one_row_at_a_time_draws(family_models, family, num_rows):
    generator, prompts, keys, expected = family_models(family)
    assert len({len(ids) for ids in expected.values()}) > 1
    decoding = replace(LONG, batch_size=num_rows)
    order = np.random.default_rng(num_rows).permutation(len(prompts))
    assert drawn(generator, [prompts[i] for i in order], decoding, [keys[i] for i in order]) == expected


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_prompts_read_in_parts_draw_the_same(family_models, family):
    generator, prompts, keys, expected = family_models(family)
    before = engine_of(generator)._limits
    use(generator, prefill_tokens=16)
    with forwards_of(generator) as shapes:
        assert drawn(generator, prompts, replace(LONG, batch_size=4), keys) == expected
    use(generator, prefill_tokens=before.prefill_tokens)
    assert max(tokens for _, tokens in shapes) == 16


@pytest.mark.parametrize("family", ["llama", "phi", "mqa", "mistral"])
def test_too_few_blocks_make_rows_wait_and_begin_anew_and_draw_the_same(family_models, family, monkeypatch):
    generator, prompts, keys, expected = family_models(family)
    given_up = []
    original = Session._give_up_something
    monkeypatch.setattr(Session, "_give_up_something", lambda session: (given_up.append(1), original(session))[1])
    engine = engine_of(generator)
    use(generator, kv_bytes=8 * block_bytes(engine._layers, torch.float32))
    try:
        assert drawn(generator, prompts, LONG, keys) == expected
    finally:
        use(generator, kv_bytes=1 << 30)
    assert len(given_up) >= 3


class Replays(GraphSteps):
    """What a GPU does, without one: a step over the same tensors again and again, recorded once for every shape."""

    num_steps = 5
    grid = 4

    def __init__(self, forward):
        super().__init__(forward)
        self.num_recorded = 0

    def _record(self, batch, decoding, last_position):
        self.num_recorded += 1
        static = batch.clone()
        recording = type("Recording", (), {})()
        recording.batch, recording.graph = static, recording

        def replay():
            recording.drawn = step(self._forward, static, decoding, last_position)

        recording.replay = replay
        return recording


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_several_steps_at_once_on_recorded_shapes_draw_the_same(family_models, family):
    generator, prompts, keys, expected = family_models(family)
    engine = engine_of(generator)
    plain, engine.steps = engine.steps, Replays(engine._forward)
    try:
        for num_rows in (6, 64):
            assert drawn(generator, prompts, replace(LONG, batch_size=num_rows), keys) == expected
        assert 0 < engine.steps.num_recorded < 60
    finally:
        engine.steps = plain


def test_gathered_and_scattered_parts_make_the_same_whole(llama):
    prompts = letters(*AROUND_A_BLOCK)
    keys = keys_of(prompts, 4)
    scattered = list(llama.generate(prompts, LONG, keys))
    engine = engine_of(llama)
    engine.steps = PlainSteps(engine._forward, gathers=True, grid=2)
    gathered = list(llama.generate(prompts, LONG, keys))
    assert [c.token_ids for c in gathered] == [c.token_ids for c in scattered]
    np.testing.assert_allclose([c.logprob for c in gathered], [c.logprob for c in scattered], atol=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_float32_not_a_bit_depends_on_the_neighbours(family, compiled, tmp_path):
    generator = models.load_family(family, tmp_path, num_context_tokens=256, hidden_size=128)
    generator = type(generator)(generator._policy, compiled=compiled)
    prompts = letters(*range(1, 72, 5))
    keys = keys_of(prompts, 8)

    def bits(prompts, keys, num_rows, independent=True):
        decoding = replace(LONG, batch_size=num_rows, independent_rows=independent)
        return {
            (prompts[c.prompt].prompt_id, c.index): (c.token_ids, c.logprob, c.target_logprob)
            for c in generator.generate(prompts, decoding, keys)
        }

    whole = bits(prompts, keys, 128)
    assert bits(prompts, keys, 24) == whole
    assert bits(prompts[::-1], keys[::-1], 57) == whole
    alone = [bits(prompts[i : i + 1], keys[i : i + 1], 8) for i in range(len(prompts))]
    assert {place: row for part in alone for place, row in part.items()} == whole
    hurried = bits(prompts[::-1], keys[::-1], 57, independent=False)
    assert {place: ids for place, (ids, *_) in hurried.items()} == {place: ids for place, (ids, *_) in whole.items()}
    assert (hurried == bits(prompts, keys, 128, independent=False)) is compiled


def test_what_is_decoded_together_does_not_depend_on_earlier_calls(llama):
    prompts = letters(*[90] * 14)
    keys, decoding = keys_of(prompts, 3), replace(LONG, batch_size=16)
    with forwards_of(llama) as fresh:
        drawn(llama, prompts, decoding, keys)
    drawn(llama, letters(*[150] * 20), decoding, keys_of(letters(*[150] * 20), 3))
    with forwards_of(llama) as again:
        drawn(llama, prompts, decoding, keys)
    assert again == fresh


def test_a_model_whose_steps_cannot_be_recorded_is_stepped_plainly_and_that_is_said_once(llama, caplog):
    prompts = letters(*AROUND_A_BLOCK)
    keys = keys_of(prompts, 3)
    expected = drawn(llama, prompts, LONG, keys)

    class Unrecordable(GraphSteps):
        def _record(self, batch, decoding, last_position):
            raise RuntimeError("operation not permitted when stream is capturing")

    engine = engine_of(llama)
    engine.steps = Unrecordable(engine._forward)
    for _ in range(2):
        assert drawn(llama, prompts, LONG, keys) == expected
    assert caplog.text.count("event=steps_not_recorded") == 1


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_long_completions_have_the_log_probabilities_of_a_teacher_forced_forward(family_models, family):
    generator, prompts, keys, _ = family_models(family)
    for completion in list(generator.generate(prompts, replace(LONG, temperature=1.0, top_p=1.0), keys)):
        ids = torch.tensor([[*completion.prompt_token_ids, *completion.token_ids]])
        with torch.inference_mode():
            logits = generator.model(ids, use_cache=False).logits[0, len(completion.prompt_token_ids) - 1 : -1]
        chosen = torch.arange(len(logits)), list(completion.token_ids)
        assert completion.logprob == pytest.approx(float(logits.double().log_softmax(-1)[chosen].sum()), abs=1e-4)
        assert completion.target_logprob == completion.logprob


# Places, memory


def test_a_finished_row_is_followed_at_once(llama):
    prompts = letters(*[5] * 30)
    decoding = Decoding(max_tokens=60, batch_size=16)
    with forwards_of(llama) as shapes:
        found = drawn(llama, prompts, decoding, keys_of(prompts, 8))
    num_tokens = sum(len(ids) - 1 for ids in found.values())
    lengths = [len(ids) for ids in found.values()]
    assert min(lengths) < 5
    assert max(lengths) == 60
    num_decoding = sum(1 for _, tokens in shapes) - 30  # at most one forward a prompt is its prefill
    assert num_decoding * 16 < 1.25 * num_tokens


class Watched(BlockStore):
    """A store that notes its fullest moment."""

    most = 0, 0

    def take_private(self, row, start):
        block = super().take_private(row, start)
        self.note()
        return block

    def take_shared(self, group, num_tokens):
        blocks = super().take_shared(group, num_tokens)
        self.note()
        return blocks

    def note(self):
        self.most = max(self.most[0], self.num_held(PRIVATE)), max(self.most[1], self.num_held(SHARED))


def watch(monkeypatch):
    monkeypatch.setattr("rsft_cluster.generators.engine.engine.BlockStore", Watched)


@pytest.mark.parametrize("num_candidates", [1, 16])
def test_a_prompt_is_stored_once_for_all_its_candidates(llama, monkeypatch, num_candidates):
    watch(monkeypatch)
    prompts = letters(5 * BLOCK)
    with forwards_of(llama) as shapes:
        drawn(llama, prompts, Decoding(max_tokens=8), keys_of(prompts, num_candidates))
    assert engine_of(llama).store.most == (num_candidates, 6)
    assert sum(tokens for _, tokens in shapes if tokens > 16) == 176  # 161 tokens, up to a multiple of 16


def test_keys_and_values_take_the_memory_that_is_foretold(llama, monkeypatch):
    watch(monkeypatch)
    prompts = letters(*[40] * 12)
    keys = keys_of(prompts, 8)
    decoding = Decoding(max_tokens=BLOCK, batch_size=32)
    drawn(llama, prompts, decoding, keys)
    store = engine_of(llama).store
    config = llama.model.config
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert block_bytes(engine_of(llama)._layers, torch.float32) == BLOCK * token_bytes
    assert store.num_bytes == (store.num_blocks + 1) * BLOCK * token_bytes
    # 32 rows of a block each, and 12 prompts of two blocks each, all of which might be live at once.
    assert store.num_blocks == 32 + 2 * 12
    private, shared = store.most
    assert private == 32
    assert shared <= 2 * 12


def test_all_blocks_come_back(llama):
    prompts = letters(*range(1, 60, 3))
    drawn(llama, prompts, replace(LONG, batch_size=24), keys_of(prompts, 5))
    store = engine_of(llama).store
    assert store.num_free == store.num_blocks
    assert not store.kind.any()


def test_blocks_of_rows_stay_together(llama, monkeypatch):
    spreads = []

    def noting(session):
        original(session)
        held = session._store.num_held(PRIVATE)
        spreads.append(session._store.private_end() - 1.1 * held - 8)

    original = Session._move_together
    monkeypatch.setattr(Session, "_move_together", noting)
    prompts = letters(*[3] * 40)
    drawn(llama, prompts, replace(LONG, batch_size=64, stop_token_ids=(5,)), keys_of(prompts, 8))
    assert max(spreads) <= 0


@pytest.mark.parametrize("num_rows", [16, 32])
def test_fewer_rows_are_decoded_when_memory_runs_out_and_the_draws_are_the_same(llama, num_rows, caplog):
    prompts = letters(*[6] * 12)
    keys = keys_of(prompts, 8)
    decoding = replace(LONG, batch_size=64)
    expected = drawn(llama, prompts, decoding, keys)

    def check(_model, _args, kwargs):
        positions = kwargs["position_ids"][0]
        if len(positions) > num_rows and positions[0] >= 7:
            raise torch.OutOfMemoryError(f"no room for {len(positions)} rows")

    hook = llama.model.register_forward_pre_hook(check, with_kwargs=True)
    found = drawn(llama, prompts, decoding, keys)
    hook.remove()
    assert found == expected
    assert f"next={num_rows}" in caplog.text
    assert f"rows={num_rows} " not in caplog.text


def test_a_prompt_that_the_store_cannot_hold_is_refused_and_the_others_go_on(llama):
    use(llama, kv_bytes=5 * block_bytes(engine_of(llama)._layers, torch.float32))
    prompts = letters(5, 5 * BLOCK, 9)
    out = list(llama.generate(prompts, replace(LONG, max_tokens=BLOCK), keys_of(prompts, 3)))
    reason = "out of memory: one completion of 160 prompt tokens and up to 32 more does not fit on the device"
    assert [o for o in out if isinstance(o, Refusal)] == [Refusal(1, reason)]
    assert sorted((c.prompt, c.index) for c in out if isinstance(c, Completion)) == [
        (p, j) for p in (0, 2) for j in range(3)
    ]


def test_results_leave_as_they_are_finished(llama):
    prompts = letters(*[4] * 50)
    with forwards_of(llama) as shapes:
        stream = llama.generate(prompts, replace(LONG, batch_size=16), keys_of(prompts, 4))
        next(stream)
        first = len(shapes)
        list(stream)
    assert first < len(shapes) / 4


# Models


def test_the_models_own_attention_is_back_afterwards(llama):
    prompts = letters(4)
    next(stream := llama.generate(prompts, LONG, keys_of(prompts, 2)))
    assert llama.model.config._attn_implementation == "rsft_blocks"
    stream.close()
    assert llama.model.config._attn_implementation == "sdpa"
    assert llama.model(torch.tensor([[1, 5, 6]])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bloom", "its attention is not chosen through transformers' attention interface"),
        ("lfm2", "its cache has layers other than attention"),
        ("gpt_oss", "its logits differ by"),
    ],
)
def test_a_model_that_does_not_fit_is_decoded_in_batches_and_that_is_said_once(family, reason, tmp_path, caplog):
    generator = models.load_family(family, tmp_path)
    assert not isinstance(generator.decoder, Engine)
    prompts = letters(2, 3)
    for _ in range(2):
        drawn(generator, prompts, Decoding(max_tokens=4), keys_of(prompts, 2))
    said = [r.getMessage() for r in caplog.records if "event=batched_decoding" in r.getMessage()]
    assert len(said) == 1
    assert reason in said[0]


def test_a_model_whose_attention_lost_something_on_the_way_is_found_out(llama, monkeypatch):
    layer_shapes(llama.model, text_ids(llama.tokenizer), compiled=False)

    def without_scale(query, key, value, how, *, window):
        return attend_causally(query, key, value, Scoring(how.scale * 1.5), window=window)

    monkeypatch.setattr("rsft_cluster.generators.engine.batches.attend_causally", without_scale)
    with pytest.raises(UnsupportedModelError, match="its logits differ by"):
        layer_shapes(llama.model, text_ids(llama.tokenizer), compiled=False)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_longest_row_are_left_to_batches(llama, rope):
    llama.model.config.rope_parameters = {**llama.model.config.rope_parameters, "rope_type": rope}
    with pytest.raises(UnsupportedModelError, match="depend on the longest row"):
        layer_shapes(llama.model, text_ids(llama.tokenizer), compiled=False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_packed_weights_give_the_same_logits(family, tmp_path):
    generator = models.load_family(family, tmp_path)
    plain = type(generator)(generator._policy, engine="batches")
    assert sum(isinstance(module, PackedLinear) for module in generator.model.modules()) > 8
    assert not any(isinstance(module, PackedLinear) for module in plain.model.modules())
    ids = torch.arange(3, 11)[None]
    with torch.inference_mode():
        torch.testing.assert_close(generator.model(ids).logits, plain.model(ids).logits, atol=1e-5, rtol=1e-5)


def test_limits_reach_the_engine(tmp_path):
    generator = models.load_family("llama", tmp_path)
    bounded = type(generator)(generator._policy, kv_bytes=1 << 20)
    assert engine_of(bounded)._limits == Limits(1 << 20, 512)


# Parts


def test_listed_names_where_each_value_stands():
    table = listed(np.array([2, 0, 2, 9, 0, 2]), 4, fill=-1)
    assert table.tolist() == [[1, 4, -1], [-1, -1, -1], [0, 2, 5], [-1, -1, -1]]
    assert listed(np.array([], np.int64), 2, fill=7).tolist() == [[7], [7]]


def test_rows_take_blocks_from_the_low_end_and_prompts_from_the_high_end():
    store = BlockStore([LayerShape(1, 2, 2)], 8, dtype=torch.float32, device=torch.device("cpu"))
    assert store.take_shared(0, BLOCK + 1) == [7, 6]
    assert [store.take_private(row, 0) for row in range(3)] == [0, 1, 2]
    assert (store.private_end(), store.shared_start(), store.num_free) == (3, 6, 3)
    assert store.count[[7, 6]].tolist() == [BLOCK, 1]
    store.keys[0][2] = 5.0
    store.release([0])
    assert store.move_down(2) == 0
    assert store.keys[0][0].eq(5.0).all()
    assert (store.private_end(), store.num_free) == (2, 4)
    assert store.move_down(1) == 1
