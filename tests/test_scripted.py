import json
import math
import subprocess
import sys
import time

import models
import pytest

from rsft_cluster.errors import ConfigError
from rsft_cluster.generators.base import Completion, Decoding, Prompt, Refusal
from rsft_cluster.generators.scripted import ScriptedGenerator
from rsft_cluster.keys import sampling_key
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import Message

NOWHERE = PolicySpec("no-such-folder")
KEYS = [sampling_key(0, "round-0001", "p", i) for i in range(4000)]


def ask(generator, *texts, reference=None, keys=(0, 1, 2), max_tokens=256):
    prompts = [Prompt(str(i), [Message("user", text)], reference) for i, text in enumerate(texts)]
    return list(generator.generate(prompts, Decoding(max_tokens=max_tokens), [keys] * len(prompts)))


def script(folder, *rows):
    path = folder / "answers.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_the_key_picks_the_answer(tmp_path):
    path = script(tmp_path, {"prompt": "p", "completions": ["a", "b", "a"]}, "")
    out = ask(ScriptedGenerator(NOWHERE, answers=path), "p", keys=[3, 4, 2**64 - 1])
    assert [c.text for c in out] == ["a", "b", "a"]
    assert [c.logprob for c in out] == pytest.approx([math.log(2 / 3), math.log(1 / 3), math.log(2 / 3)])


def test_a_prompt_that_is_not_in_the_script_is_refused_alone(tmp_path):
    path = script(tmp_path, {"prompt": "p", "completions": ["a"]})
    out = ask(ScriptedGenerator(NOWHERE, answers=path), "q", "p", keys=[0])
    assert out[0] == Refusal(0, "no scripted answer to the prompt 'q'")
    assert isinstance(out[1], Completion)
    assert out[1].prompt == 1


@pytest.mark.parametrize("accuracy", [0.0, 0.3, 1.0])
def test_the_share_of_right_answers_is_the_accuracy(accuracy):
    out = ask(ScriptedGenerator(NOWHERE, accuracy=accuracy), "p", reference="5", keys=KEYS)
    rate = sum(c.text == "5" for c in out) / len(out)
    assert abs(rate - accuracy) <= 4 * math.sqrt(accuracy * (1 - accuracy) / len(out))


def test_wrong_answers_to_a_number_are_other_numbers():
    out = ask(ScriptedGenerator(NOWHERE, accuracy=0), "p", reference="-1", keys=KEYS)
    assert {c.text for c in out} == {str(n) for n in range(9)}


@pytest.mark.parametrize("reference", ["北京", None])
def test_other_wrong_answers_say_so(reference):
    out = ask(ScriptedGenerator(NOWHERE, accuracy=0), "p", reference=reference)
    assert {c.text for c in out} == {"I do not know."}


def test_probabilities_add_up_to_one():
    out = ask(ScriptedGenerator(NOWHERE, accuracy=0.3), "p", reference="5", keys=KEYS)
    assert sum({c.text: math.exp(c.logprob) for c in out}.values()) == pytest.approx(1)


def test_a_call_again_in_another_order_gives_the_same_candidates():
    first = ask(ScriptedGenerator(NOWHERE), "p", reference="5", keys=KEYS[:50])
    again = ask(ScriptedGenerator(NOWHERE), "p", reference="5", keys=KEYS[:50][::-1])
    assert [c.text for c in first] == [c.text for c in again][::-1]


def test_without_a_tokenizer_bytes_are_tokens():
    out = ask(ScriptedGenerator(NOWHERE, accuracy=1), "问", reference="答")
    assert out[0].token_ids == tuple("答".encode())
    assert out[0].prompt_token_ids == tuple("问".encode())


def test_the_tokenizer_of_the_policy_gives_ids_and_the_end_token(tmp_path):
    models.tokenizer().save_pretrained(tmp_path)
    out = ask(ScriptedGenerator(PolicySpec(str(tmp_path)), accuracy=1), "问", reference="答")
    expected = models.tokenizer()("答", add_special_tokens=False)["input_ids"]
    assert out[0].token_ids == (*expected, models.EOS)
    assert out[0].finish_reason == "stop"
    assert out[0].text == "答"


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_an_answer_longer_than_max_tokens_is_cut(tmp_path, with_tokenizer):
    if with_tokenizer:
        models.tokenizer().save_pretrained(tmp_path)
    out = ask(ScriptedGenerator(PolicySpec(str(tmp_path)), accuracy=1), "p", reference="abcdef", max_tokens=3)
    assert (out[0].text, len(out[0].token_ids), out[0].finish_reason) == ("abc", 3, "length")


def test_the_delay_passes_once_a_prompt():
    started = time.monotonic()
    ask(ScriptedGenerator(NOWHERE, delay_s=0.05), "p", "q", reference="5")
    assert 0.1 <= time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"prompt": "p"}', "line 2: expected"),
        ('{"prompt": "p", "completions": []}', "line 2: expected"),
        ('{"prompt": "p", "completions": "ab"}', "line 2: expected"),
        ('{"prompt": "first", "completions": ["b"]}', "line 2: the prompt 'first' stands twice"),
    ],
)
def test_a_bad_script_is_named_with_its_line(tmp_path, row, message):
    path = script(tmp_path, {"prompt": "first", "completions": ["a"]}, row)
    with pytest.raises(ConfigError, match=message):
        ScriptedGenerator(NOWHERE, answers=path)


@pytest.mark.parametrize(
    ("params", "message"),
    [({"accuracy": 1.5}, "1.5"), ({"delay_s": -1}, "-1"), ({"answers": "/nowhere.jsonl"}, "cannot be read")],
)
def test_parameters_out_of_range_are_refused_at_once(params, message):
    with pytest.raises(ConfigError, match=message):
        ScriptedGenerator(NOWHERE, **params)


def test_it_runs_without_engines():
    code = (
        "import sys, rsft_cluster.generators.scripted, rsft_cluster.generators.base\n"
        "print(sorted({'torch', 'transformers', 'ray', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
