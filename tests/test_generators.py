import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import models
import pytest
import torch
from models import EOS, PAD
from oracles import chi_square_p, enumerate_completions

from rsft_cluster.errors import ConfigError, StageError
from rsft_cluster.generators.base import Completion, Decoding, Prompt, Refusal
from rsft_cluster.generators.drawing import draw, keys_tensor
from rsft_cluster.generators.engine.engine import Engine
from rsft_cluster.generators.plain.batches import BatchedDecoder
from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.keys import sampling_key
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import Message

LENGTHS = (1, 3, 20, 9, 14)
SHAPED = Decoding(temperature=0.8, top_k=20, top_p=0.95, min_p=0.01, max_tokens=12)


def raw(*texts):
    return [Prompt(f"prompt-{i}", [Message("raw", text)]) for i, text in enumerate(texts)]


def keys_of(prompts, num):
    return [[sampling_key(0, "round-0001", p.prompt_id, j) for j in range(num)] for p in prompts]


def load(path, *, engine="blocks", **policy):
    return TransformersGenerator(PolicySpec(path, **policy), engine=engine)


def drawn(generator, prompts, decoding, keys):
    """Token ids by (prompt_id, index); every key answered exactly once."""
    out = list(generator.generate(prompts, decoding, keys))
    assert all(isinstance(c, Completion) for c in out)
    found = {(prompts[c.prompt].prompt_id, c.index): c.token_ids for c in out}
    assert len(found) == len(out) == sum(map(len, keys))
    return found


@torch.inference_mode()
def one_by_one(generator, prompts, decoding, keys):
    """The plain loop: one row at a time, nothing padded, nothing cached, a full forward at every step."""
    found = {}
    for prompt, prompt_keys in zip(prompts, keys, strict=True):
        prefix = generator.tokenizer(prompt.messages[0].content)["input_ids"]
        for j, key in enumerate(prompt_keys):
            token_ids = []
            for step in range(decoding.max_tokens):
                ids = torch.tensor([prefix + token_ids])
                logits = generator.model(input_ids=ids, use_cache=False).logits[:, -1]
                noise = {"keys": keys_tensor([key], device="cpu"), "steps": torch.tensor([step])}
                token_ids.append(int(draw(logits, **noise, decoding=decoding).tokens))
                if token_ids[-1] == EOS:
                    break
            found[prompt.prompt_id, j] = tuple(token_ids)
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load(models.tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A Llama of six tokens, that stops after a few."""
    return load(models.tiny_llama(tmp_path_factory.mktemp("letters"), alphabet="abc", scale=0.3, seed=2))


@contextmanager
def forwards_of(generator):
    """The shape of the input ids of every forward within the block."""
    seen = []
    hook = generator.model.register_forward_pre_hook(
        lambda _model, _args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


# Exactness


@pytest.mark.parametrize("family", models.FAMILIES)
def test_batches_draw_what_one_row_at_a_time_draws(family, tmp_path):
    generator = models.load_family(family, tmp_path)
    assert isinstance(generator.decoder, BatchedDecoder if family in models.BATCHED else Engine)
    prompts = raw(*(("hgfedcba" * 3)[:n] for n in LENGTHS))
    keys = keys_of(prompts, 3)
    expected = one_by_one(generator, prompts, SHAPED, keys)
    assert len({len(ids) for ids in expected.values()}) > 1
    for batch_size in (1, 2, 6, 64):
        decoding = replace(SHAPED, batch_size=batch_size)
        assert drawn(generator, prompts, decoding, keys) == expected
        assert drawn(generator, prompts[::-1], decoding, keys[::-1]) == expected
    assert (
        drawn(generator, prompts[1:2], SHAPED, [keys[1][:1]])[prompts[1].prompt_id, 0]
        == expected[prompts[1].prompt_id, 0]
    )


def test_a_policy_may_draw_the_pad_token(letters):
    prompts = raw("a", "abcabc")
    keys = keys_of(prompts, 20)
    decoding = Decoding(max_tokens=8)
    found = drawn(letters, prompts, decoding, keys)
    assert any(PAD in ids[:-1] for ids in found.values())
    assert found == one_by_one(letters, prompts, decoding, keys)


def test_padding_with_the_end_token_changes_nothing(tmp_path):
    prompts = raw("a", "abcdef")
    keys = keys_of(prompts, 4)
    distinct = load(models.tiny_llama(tmp_path / "distinct"))
    shared = load(models.tiny_llama(tmp_path / "shared", pad_is_eos=True))
    assert shared.tokenizer.pad_token_id == EOS
    assert drawn(shared, prompts, SHAPED, keys) == drawn(distinct, prompts, SHAPED, keys)


def test_prompts_may_have_different_numbers_of_keys(llama):
    prompts = raw("a", "bc", "def")
    keys = keys_of(prompts, 5)
    expected = drawn(llama, prompts, SHAPED, keys)
    ragged = [keys[0][3:], [], keys[2][:1]]
    found = drawn(llama, prompts, SHAPED, ragged)
    assert found["prompt-0", 0] == expected["prompt-0", 3]
    assert found["prompt-2", 0] == expected["prompt-2", 0]
    assert len(found) == 3


def test_the_same_call_gives_the_same_bytes(llama):
    prompts = raw("a", "bc")
    keys = keys_of(prompts, 4)
    first, second = (list(llama.generate(prompts, SHAPED, keys)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_whole_completions_follow_the_enumerated_distribution(letters, temperature):
    decoding = Decoding(temperature=temperature, max_tokens=3, batch_size=4096)
    prompts = raw("ab")
    keys = keys_of(prompts, 15_000)
    prefix = letters.tokenizer("ab")["input_ids"]
    counts = Counter(drawn(letters, prompts, decoding, keys).values())
    expected = enumerate_completions(letters.model, prefix, end=EOS, temperature=temperature, length=3)
    wrong = enumerate_completions(letters.model, prefix, end=EOS, temperature=0.9, length=3)
    assert set(counts) <= set(expected)
    observed = [counts[ids] for ids in expected]
    assert chi_square_p(observed, list(expected.values())) > 1e-4
    assert chi_square_p(observed, [wrong[ids] for ids in expected]) < 1e-4


@pytest.mark.parametrize(
    "decoding", [Decoding(max_tokens=12), Decoding(temperature=1.5, max_tokens=12), SHAPED], ids=str
)
def test_both_log_probabilities_agree_with_a_teacher_forced_forward(llama, decoding):
    from rsft_cluster.generators.drawing import process

    prompts = raw("a", "bcdefgh")
    for completion in list(llama.generate(prompts, decoding, keys_of(prompts, 4))):
        ids = torch.tensor([[*completion.prompt_token_ids, *completion.token_ids]])
        with torch.inference_mode():
            logits = llama.model(ids).logits[0, len(completion.prompt_token_ids) - 1 : -1]
        chosen = torch.arange(len(logits)), list(completion.token_ids)
        target = logits.double().log_softmax(-1)[chosen].sum()
        proposal = process(logits.float(), decoding).double().log_softmax(-1)[chosen].sum()
        assert completion.target_logprob == pytest.approx(float(target), abs=1e-4)
        assert completion.logprob == pytest.approx(float(proposal), abs=1e-4)


def test_temperature_zero_is_greedy_and_certain(llama):
    prompts = raw("a", "bcd")
    keys = keys_of(prompts, 1)
    greedy = Decoding(temperature=0, max_tokens=12)
    assert drawn(llama, prompts, greedy, keys) == one_by_one(llama, prompts, greedy, keys)
    assert all(c.logprob == 0 and c.target_logprob < 0 for c in llama.generate(prompts, greedy, keys))


# What a checkpoint may not change


def test_a_generation_config_shapes_no_draw(tmp_path):
    meddling = {
        "do_sample": True,
        "repetition_penalty": 1.5,
        "top_k": 3,
        "top_p": 0.5,
        "temperature": 0.3,
        "suppress_tokens": list(range(3, 120)),
        "min_new_tokens": 6,
        "no_repeat_ngram_size": 2,
        "eos_token_id": EOS,
    }
    plain = load(models.tiny_llama(tmp_path / "plain"))
    shipped = load(models.tiny_llama(tmp_path / "shipped", generation_config=meddling))
    assert shipped.model.generation_config.repetition_penalty == 1.5
    prompts = raw("a", "bcd")
    keys = keys_of(prompts, 8)
    free = Decoding(max_tokens=20)
    assert drawn(shipped, prompts, free, keys) == drawn(plain, prompts, free, keys)


def test_a_generation_config_names_end_tokens(tmp_path):
    ends = [EOS, *range(3, 100)]
    generator = load(models.tiny_llama(tmp_path, generation_config={"eos_token_id": ends}))
    prompts = raw("a")
    out = list(generator.generate(prompts, Decoding(max_tokens=40), keys_of(prompts, 8)))
    assert all(c.finish_reason == "stop" and c.token_ids[-1] in ends for c in out)
    assert all(not set(c.token_ids[:-1]) & set(ends) for c in out)


# Batched decoding, for models that the engine does not fit


@pytest.fixture(scope="module")
def batched(tmp_path_factory):
    return load(models.tiny_llama(tmp_path_factory.mktemp("batched")), engine="batches")


@pytest.mark.parametrize("batch_size", [1, 2, 6, 64])
def test_batched_decoding_draws_the_same(llama, batched, batch_size):
    prompts = raw("a", "bcdefgh", "ij")
    keys = keys_of(prompts, 5)
    decoding = replace(SHAPED, batch_size=batch_size)
    assert drawn(batched, prompts, decoding, keys) == drawn(llama, prompts, decoding, keys)


@pytest.mark.parametrize("batch_size", [4, 8, 64])
def test_batched_decoding_prefills_a_prompt_once_for_all_its_candidates(batched, batch_size):
    prompts = raw("abcdefg", "hijklmn", "opqrstu")
    with forwards_of(batched) as forwards:
        drawn(batched, prompts, replace(SHAPED, batch_size=batch_size), keys_of(prompts, 8))
    prefills = [shape for shape in forwards if shape[1] > 1]
    assert sum(rows * width for rows, width in prefills) == 3 * 8
    assert max(rows for rows, width in forwards if width == 1) <= batch_size
    assert len(prefills) == (1 if batch_size == 64 else 3)


def test_prompts_of_a_recurrent_model_never_meet_padding(tmp_path):
    generator = load(models.tiny_lfm2(tmp_path))
    masks = []
    generator.model.register_forward_pre_hook(
        lambda _model, _args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    prompts = raw("a", "bcd")
    drawn(generator, prompts, SHAPED, keys_of(prompts, 4))
    assert all(mask.bool().all() for mask in masks)
    assert max(len(mask) for mask in masks) == 4


def test_finished_rows_leave_the_batch(batched):
    prompts = raw("abcdefg")
    decoding = Decoding(max_tokens=60, stop_token_ids=tuple(range(3, 20)))
    with forwards_of(batched) as forwards:
        lengths = [len(ids) for ids in drawn(batched, prompts, decoding, keys_of(prompts, 48)).values()]
    assert min(lengths) < 5
    assert max(lengths) > 20
    for step, (rows, _) in enumerate(forwards[1:], start=1):
        num_finished = rows - sum(length > step for length in lengths)
        assert 0 <= num_finished < max(1, rows // 8)
    assert len(forwards) == max(lengths)


@pytest.mark.parametrize(("batch_size", "num_rows"), [(64, 1), (4, 2), (64, 5)])
def test_a_batch_that_does_not_fit_in_memory_is_split_and_draws_the_same(batched, num_rows, batch_size):
    prompts = raw("a", "bcd", "ef")
    decoding = replace(SHAPED, batch_size=batch_size)
    expected = drawn(batched, prompts, decoding, keys_of(prompts, 5))

    def check(_model, _args, kwargs):
        if len(kwargs["input_ids"]) > num_rows:
            raise torch.OutOfMemoryError(f"no room for {len(kwargs['input_ids'])} rows")

    hook = batched.model.register_forward_pre_hook(check, with_kwargs=True)
    found = drawn(batched, prompts, decoding, keys_of(prompts, 5))
    hook.remove()
    assert found == expected


# Ends


def test_a_stop_string_ends_a_completion_and_stays_in_its_text(letters):
    prompts = raw("a", "bc")
    free = Decoding(max_tokens=10)
    stopping = replace(free, stop=("bab", "cb"))
    unstopped = drawn(letters, prompts, free, keys_of(prompts, 30))
    reasons = Counter()
    for completion in letters.generate(prompts, stopping, keys_of(prompts, 30)):
        ids = unstopped[prompts[completion.prompt].prompt_id, completion.index]
        assert ids[: len(completion.token_ids)] == completion.token_ids
        stopped = [stop for stop in stopping.stop if stop in completion.text]
        assert not stopped or completion.text.endswith(stopped[0])
        assert (completion.finish_reason == "stop") == bool(stopped or completion.token_ids[-1] == EOS)
        reasons[bool(stopped), completion.finish_reason] += 1
    assert reasons[True, "stop"] > 5
    assert reasons[False, "length"] > 0


def test_a_stop_string_that_is_a_special_token_ends_by_its_id(letters):
    prompts = raw("a")
    decoding = Decoding(max_tokens=10, stop=("<pad>",))
    out = list(letters.generate(prompts, decoding, keys_of(prompts, 30)))
    assert any(c.token_ids[-1] == PAD and c.finish_reason == "stop" for c in out)
    assert all(PAD not in c.token_ids[:-1] for c in out)


def test_max_tokens_is_a_length_and_never_a_stop(llama):
    prompts = raw("a")
    out = list(llama.generate(prompts, Decoding(max_tokens=3), keys_of(prompts, 8)))
    assert {(len(c.token_ids), c.finish_reason) for c in out if EOS not in c.token_ids} == {(3, "length")}


def test_the_text_is_the_tokens_without_the_end_token(letters):
    prompts = raw("a")
    out = list(letters.generate(prompts, Decoding(max_tokens=10), keys_of(prompts, 30)))
    ended = [c for c in out if c.token_ids[-1] == EOS]
    assert ended
    for completion in ended:
        assert completion.text == "".join("   abc"[token] for token in completion.token_ids if token > EOS)


# Refusals


@pytest.mark.parametrize(("num_prompt_tokens", "fits"), [(27, True), (28, True), (29, False)])
def test_a_prompt_is_refused_from_the_first_token_beyond_the_context(tmp_path, num_prompt_tokens, fits):
    generator = load(models.tiny_gpt2(tmp_path, num_context_tokens=40))
    prompts = raw("a" * (num_prompt_tokens - 1), "b")
    out = list(generator.generate(prompts, Decoding(max_tokens=12), keys_of(prompts, 2)))
    assert sum(isinstance(o, Completion) and o.prompt == 1 for o in out) == 2
    refusals = [o for o in out if isinstance(o, Refusal)]
    reason = "too long: 29 prompt tokens + 12 max_tokens = 41, the model's context is 40"
    assert refusals == ([] if fits else [Refusal(0, reason)])
    assert fits or out[0] == refusals[0]


def test_a_prompt_without_tokens_is_refused(tmp_path):
    generator = load(models.tiny_llama(tmp_path, adds_bos=False))
    prompts = raw("", "a")
    out = list(generator.generate(prompts, SHAPED, keys_of(prompts, 2)))
    assert out[0] == Refusal(0, "empty: the prompt has no tokens to continue")
    assert [o.prompt for o in out[1:]] == [1, 1]


def test_a_token_unknown_to_the_model_is_refused(tmp_path):
    path = models.tiny_llama(tmp_path)
    generator = load(path)
    generator.tokenizer.add_tokens(["<new>"])
    out = list(generator.generate(raw("a<new>"), SHAPED, [[1]]))
    assert out == [Refusal(0, "unknown token: id 259, and the model knows 259")]


def test_messages_that_the_template_refuses_are_refused(tmp_path):
    generator = load(models.tiny_llama(tmp_path), chat_template="{{ raise_exception('no users') }}")
    prompts = [Prompt("p", [Message("user", "hi")]), *raw("a")]
    first, *rest = generator.generate(prompts, SHAPED, [[1], [2]])
    assert first == Refusal(0, "the chat template refuses these messages: no users")
    assert [o.prompt for o in rest] == [1]


def test_chat_prompts_need_a_template(tmp_path):
    generator = load(models.tiny_llama(tmp_path, chat_template=None))
    with pytest.raises(ConfigError, match="has no chat template"):
        list(generator.generate([Prompt("p", [Message("user", "hi")])], SHAPED, [[1]]))


# Failures


@pytest.mark.parametrize("engine", ["blocks", "batches"])
def test_a_prompt_for_which_one_row_is_too_much_is_refused_alone(llama, batched, engine):
    generator = llama if engine == "blocks" else batched
    prompts = raw("a", "b" * 30, "cd")

    def check(_model, _args, kwargs):
        if kwargs["position_ids"].max() > 35:
            raise torch.OutOfMemoryError("long rows do not fit")

    hook = generator.model.register_forward_pre_hook(check, with_kwargs=True)
    out = list(generator.generate(prompts, Decoding(max_tokens=12, stop_token_ids=(3, 4)), keys_of(prompts, 4)))
    hook.remove()
    reason = "out of memory: one completion of 31 prompt tokens and up to 12 more does not fit on the device"
    assert [o for o in out if o.prompt == 1] == [Refusal(1, reason)]
    assert Counter(o.prompt for o in out) == {0: 4, 1: 1, 2: 4}


def test_logits_that_are_not_finite_stop_the_stage(tmp_path):
    generator = load(models.tiny_llama(tmp_path, scale=math.nan))
    with pytest.raises(StageError, match="logits are not finite after 2 prompt tokens and 0 drawn"):
        list(generator.generate(raw("a"), SHAPED, [[1]]))


def test_a_folder_without_safetensors_is_named(tmp_path):
    models.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"policy\.model {tmp_path}: cannot be loaded"):
        load(str(tmp_path))
