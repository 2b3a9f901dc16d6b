"""The customer service demo: each mistake has one name, a reason and an exact place; the task fits its model."""

import random
from itertools import islice
from pathlib import Path

import pytest
from factories import candidate, read_jsonl

from rsft_cluster.config.file import load_config
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.demos import service
from rsft_cluster.demos.__main__ import prepare
from rsft_cluster.demos.service import CHINESE, ENGLISH, MISTAKES, Inquiry, Order, reply
from rsft_cluster.errors import StoreError
from rsft_cluster.report.reporter import Reporter
from rsft_cluster.scoring.judge import Judge

CONFIG = Path(__file__).resolve().parent.parent / "jobs" / "configs" / "service.yaml"
CONSTRAINT_OF = {
    "language": "right_language",
    "opening": "polite_opening",
    "number": "right_number",
    "facts": "true_facts",
    "promise": "no_promise",
    "rambling": "length",
    "closing": "polite_closing",
}
ASKED = "#K7R shipped +3d ¥40|{}>"
ARRIVAL = ASKED.format("When will it arrive?")


def replied(prompt: str, completion: str, **more: object) -> Candidate:
    return candidate(completion, text=prompt, **more)


def failing(judge: Judge, found: Candidate) -> list[str]:
    (judgement,) = judge.judge([found])
    assert not judgement.errors
    assert judgement.passed == all(v.passed for v in judgement.verdicts)
    assert all(v.reason for v in judgement.verdicts)
    return [v.constraint for v in judgement.verdicts if not v.passed]


def drawn_inquiries(count: int) -> list[tuple[Inquiry, str]]:
    rng = random.Random(3)
    return [(c, c.prompt(rng.choice(c.language.requests[c.fact]))) for c in islice(service.inquiries(rng), count)]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(load_config(CONFIG).scoring.constraints)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    service.write_task(folder, seed=5)
    return folder


def test_a_reply_without_mistakes_passes_every_constraint(judge):
    rng = random.Random(0)
    for inquiry, prompt in drawn_inquiries(300):
        assert failing(judge, replied(prompt, reply(inquiry, rng))) == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_fails_its_constraint_and_no_other(judge, mistake):
    rng = random.Random(1)
    for inquiry, prompt in drawn_inquiries(200):
        text = reply(inquiry, rng, [mistake])
        assert failing(judge, replied(prompt, text)) == [CONSTRAINT_OF[mistake]], text


@pytest.mark.parametrize(
    ("constraint", "completion", "reason", "place"),
    [
        ("right_language", "您好！订单#K7R还需3天。谢谢！", "'您' is Chinese; English was asked for", 0),
        ("right_language", "Hello! 订单#K7R", "'订' is Chinese; English was asked for", 7),
        ("right_language", "#K7R", "has nothing in English", None),
        ("polite_opening", "Hey! Order #K7R", "opens with 'Hey! Order', with none of", 2),
        ("polite_opening", "Order #K7R", "opens with 'Order #K', with none of", 0),
        ("polite_opening", "Hel", "opens with 'Hel', with none of", 3),
        ("right_number", "Hi! Order #K8R is", "order 'K8R'; the record says K7R", 12),
        ("right_number", "Hi! Order #K7 is", "order 'K7'; the record says K7R", 13),
        ("right_number", "Hi! Order #K7RX is", "order 'K7RX'; the record says K7R", 14),
        ("right_number", "Hi! It arrives in 3 days.", "mentions no order", None),
        ("true_facts", "Hi! Order #K7R arrives in 4 days.", "states 'arrives in 4 days.' where 'arrives in 3", 26),
        ("true_facts", "Hi! Order #K7R arrives in 33 days.", "states 'arrives in 33 days' where 'arrives in 3", 27),
        ("true_facts", "Hi! Order #K7R is shipped.", "states 'is shipped.' where 'arrives in 3 days.' is true", 15),
        ("true_facts", "Hi!", "mentions no order, so states nothing", None),
        ("no_promise", "Hi! It is FREE!", "promises 'FREE', which the policy does not allow", 10),
        ("polite_closing", "Hi! Thank you! Bye!", "ends with 'ou! Bye!', with none of ['Thank you!',", 19),
        ("polite_closing", "", "ends with '', with none of", 0),
    ],
)
def test_a_mistake_is_named_and_placed(constraint, completion, reason, place):
    verdict = getattr(service, constraint)(replied(ARRIVAL, completion))
    assert not verdict.passed
    assert verdict.reason.startswith(reason)
    assert verdict.fatal_at == place


def test_a_letter_of_english_in_a_chinese_reply_is_found_but_not_in_the_order_number():
    asked = ASKED.format("几天能到？")
    assert service.right_language(replied(asked, "您好！订单#K7R还需3天。谢谢！")).passed
    assert service.right_language(replied(asked, "您好！订单#K7R OK")).fatal_at == 10


def test_what_was_cut_off_names_no_token_that_ended_it():
    assert service.polite_closing(replied(ARRIVAL, "Hi! Order", finish_reason="length")).fatal_at is None


@pytest.mark.parametrize(("status", "value"), [("pending", "yes"), ("packed", "yes"), ("shipped", "no")])
def test_only_what_is_not_shipped_can_be_cancelled(judge, status, value):
    inquiry = Inquiry(Order("K7R", status, "3", "40"), ENGLISH, "cancelled")
    assert inquiry.order.value("cancelled") == value
    wrong = {"yes": "cannot be cancelled", "no": "is cancelled"}[value]
    text = f"Hi! Order #K7R {wrong}. Thank you!"
    assert failing(judge, replied(inquiry.prompt("Can I cancel?"), text)) == ["true_facts"]


def test_a_prompt_that_is_no_request_is_an_error_and_no_verdict():
    with pytest.raises(ValueError, match="'47\\+85:' is no request; expected something like '#K7R"):
        service.true_facts(replied("47+85:", "132"))
    with pytest.raises(ValueError, match="is no request"):
        service.right_language(replied(ASKED.format("How are you?"), "Hi!"))


def test_the_task_is_the_same_for_a_seed_and_its_parts_share_no_prompt(task, tmp_path):
    service.write_task(tmp_path / "again", seed=5)
    service.write_task(tmp_path / "other", seed=6)
    names = [f"{name}.jsonl" for name in service.SIZES]
    assert [(tmp_path / "again" / n).read_bytes() for n in names] == [(task / n).read_bytes() for n in names]
    assert (tmp_path / "other" / "worked.jsonl").read_bytes() != (task / "worked.jsonl").read_bytes()
    parts = [{row["prompt"] for row in read_jsonl(task / n)} for n in names]
    assert [len(part) for part in parts] == list(service.SIZES.values())
    assert len(set.union(*parts)) == sum(service.SIZES.values())


def test_worked_replies_are_in_both_languages_and_about_half_of_them_are_right(judge, task):
    worked = [replied(row["prompt"], row["completion"]) for row in read_jsonl(task / "worked.jsonl")]
    expected = (1 - service.MISTAKE_RATE) ** len(MISTAKES)
    passed = [judgement.passed for judgement in judge.judge(worked)]
    assert sum(map(bool, passed)) / len(passed) == pytest.approx(expected, abs=0.03)
    assert {service._written_in(found.completion).name for found in worked} == {ENGLISH.name, CHINESE.name}


def test_the_symbols_write_every_text_and_the_texts_fit_the_model(task):
    config = load_config(CONFIG)
    assert len(set(service.SYMBOLS)) == len(service.SYMBOLS)
    for name in service.SIZES:
        for row in read_jsonl(task / f"{name}.jsonl"):
            whole = row["prompt"] + row.get("completion", "")
            assert set(whole) <= set(service.SYMBOLS) - {service.END, service.PAD}
            assert len(row["prompt"]) + config.sampling.max_tokens <= service.CONTEXT
            assert len(row.get("completion", "")) < config.sampling.max_tokens


def test_its_variant_learns_from_rejected_replies_as_well():
    (sets,) = service.VARIANTS.values()
    rejection = load_config(CONFIG, sets).training.rejection
    assert rejection is not None
    assert (rejection.weight, load_config(CONFIG).training.rejection) == (0.1, None)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "task"
    sets = [f"policy.model={folder}/base", f"prompts.paths=[{folder}/prompts.jsonl]"]
    with pytest.raises(StoreError, match=f"{folder}: the task cannot be written: .*copy jobs/"):
        prepare(service, load_config(CONFIG, sets), Reporter())
