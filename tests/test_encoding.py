import models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import BOS, EOS, PAD
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel

from rsft_cluster.errors import ConfigError
from rsft_cluster.generators.stopping import Ending, StopRule
from rsft_cluster.policies import tokens
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import Message

CHAT = [Message("system", "Be brief."), Message("user", "2 + 3 等于几？")]
WITHOUT_BOS = models.CHAT_TEMPLATE.removeprefix("{{ bos_token }}")
TWO_BOS = "{{ bos_token }}" + models.CHAT_TEMPLATE


def rendered(token_ids, tokenizer):
    return tokenizer.decode([token for token in token_ids if token > EOS])


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("adds_eos", [True, False])
@pytest.mark.parametrize(
    ("template", "num_bos"), [(models.CHAT_TEMPLATE, 1), (WITHOUT_BOS, 0), (TWO_BOS, 1)], ids=["1", "0", "2"]
)
def test_a_chat_prompt_has_the_templates_bos_at_most_once_and_no_eos(adds_bos, adds_eos, template, num_bos):
    tokenizer = models.tokenizer(chat_template=template, adds_bos=adds_bos, adds_eos=adds_eos)
    token_ids = tokens.encode_prompt(tokenizer, CHAT)
    assert token_ids.count(BOS) == num_bos == token_ids[:1].count(BOS)
    assert EOS not in token_ids
    assert rendered(token_ids, tokenizer) == "system: Be brief.\nuser: 2 + 3 等于几？\nassistant: "


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("adds_eos", [True, False])
@pytest.mark.parametrize("text", ["Hello", "你好", "", " a ", "\x00", "<s>x"])
def test_raw_text_gets_the_tokenizers_own_bos_and_never_its_eos(adds_bos, adds_eos, text):
    tokenizer = models.tokenizer(adds_bos=adds_bos, adds_eos=adds_eos)
    token_ids = tokens.encode_prompt(tokenizer, [Message("raw", text)])
    assert token_ids.count(BOS) == max(adds_bos, "<s>" in text)
    assert EOS not in token_ids
    assert rendered(token_ids, tokenizer) == text.replace("<s>", "")


def test_the_template_of_the_policy_wins_over_the_tokenizers():
    tokenizer = models.tokenizer()
    token_ids = tokens.encode_prompt(tokenizer, CHAT, chat_template="{{ messages[-1].content }}=")
    assert rendered(token_ids, tokenizer) == "2 + 3 等于几？="


def test_chat_messages_without_a_template_are_an_error_with_three_ways_out():
    tokenizer = models.tokenizer(chat_template=None)
    with pytest.raises(ConfigError, match=r"raw text.*policy\.chat_template.*choose a model"):
        tokens.encode_prompt(tokenizer, CHAT)
    assert tokens.encode_prompt(tokenizer, [Message("raw", "a")])[0] == BOS
    assert tokens.encode_prompt(tokenizer, CHAT, chat_template=WITHOUT_BOS)


def test_messages_that_the_template_refuses_are_that_prompts_fault():
    tokenizer = models.tokenizer(chat_template="{{ raise_exception('no system role') }}")
    with pytest.raises(tokens.UnencodablePromptError, match="no system role"):
        tokens.encode_prompt(tokenizer, CHAT)


def test_a_raw_message_stands_alone():
    with pytest.raises(tokens.UnencodablePromptError, match=r"\['raw', 'user'\]"):
        tokens.encode_prompt(models.tokenizer(), [Message("raw", "a"), Message("user", "b")])


def test_end_tokens_are_those_of_tokenizer_checkpoint_and_config():
    tokenizer = models.tokenizer()
    assert tokens.end_token_ids(tokenizer) == {EOS}
    assert tokens.end_token_ids(tokenizer, 7) == {EOS, 7}
    assert tokens.end_token_ids(tokenizer, [7, 8], (9,)) == {EOS, 7, 8, 9}


@pytest.mark.parametrize(("pad_is_eos", "expected"), [(False, PAD), (True, EOS)])
def test_padding_uses_a_token_of_its_own_if_there_is_one(pad_is_eos, expected):
    assert tokens.pad_token_id(models.tokenizer(pad_is_eos=pad_is_eos)) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_context_is_read_from_every_family(family, tmp_path):
    from transformers import AutoConfig

    path = models.FAMILIES[family](tmp_path, num_context_tokens=40)
    assert tokens.num_context_tokens(AutoConfig.from_pretrained(path)) == 40


def test_decoded_text_has_no_special_tokens_and_its_spaces():
    tokenizer = models.tokenizer()
    token_ids = tokens.encode_prompt(tokenizer, [Message("raw", "a , b 好 .")])
    assert tokens.decode(tokenizer, [*token_ids, EOS]) == "a , b 好 ."


def test_a_policy_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"policy\.model .*empty.* tokenizer"):
        tokens.load_tokenizer(PolicySpec(str(tmp_path / "empty")))


@settings(max_examples=200)
@given(
    text=st.text(alphabet="ab好é🙂 ", max_size=30),
    stops=st.lists(st.text(alphabet="ab好é🙂 ", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_ends_at_the_token_that_completes_it(text, stops):
    tokenizer = models.tokenizer()
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rule = StopRule(frozenset(), tuple(stops), lambda ids: tokens.decode(tokenizer, ids))
    ending = Ending(rule)
    found = next((i for i, token in enumerate(token_ids) if ending.reached(token)), None)
    prefixes = [tokens.decode(tokenizer, token_ids[: i + 1]) for i in range(len(token_ids))]
    assert found == next((i for i, p in enumerate(prefixes) if any(stop in p for stop in stops)), None)


def test_an_end_token_ends_and_a_broken_character_does_not():
    tokenizer = models.tokenizer()
    ending = Ending(StopRule(frozenset({EOS}), ("好",), lambda ids: tokens.decode(tokenizer, ids)))
    *broken, last = tokenizer("好", add_special_tokens=False)["input_ids"]
    reached = [ending.reached(token) for token in [*broken, *broken, last, EOS]]
    assert reached == [False] * 4 + [True, True]


def test_of_several_templates_the_default_is_used():
    tokenizer = models.tokenizer()
    tokenizer.chat_template = {"default": "{{ messages[-1].content }}=", "tool_use": "no"}
    assert rendered(tokens.encode_prompt(tokenizer, CHAT), tokenizer) == "2 + 3 等于几？="


def test_a_stop_string_across_a_word_start_is_seen_where_spaces_depend_on_the_token_before():
    core = Tokenizer(WordLevel({"\u2581a": 0, "\u2581b": 1}))
    core.decoder = decoders.Metaspace()
    assert core.decode([1]) == "b" != core.decode([0, 1])[1:]
    ending = Ending(StopRule(frozenset(), ("a b",), lambda ids: core.decode(list(ids))))
    assert [ending.reached(token) for token in (1, 0, 1)] == [False, False, True]
