"""classifier and reward_model: tiny random models, against a plain loop that asks them text by text."""

import json
import math
import shutil

import models
import pytest
import torch
from factories import candidate
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from rsft_cluster.config import Constraint
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.models.classifier import Classifier
from rsft_cluster.constraints.models.reward_model import RewardModel
from rsft_cluster.constraints.models.sequence_models import SequenceModel
from rsft_cluster.errors import ConfigError
from rsft_cluster.schemas import Message
from rsft_cluster.scoring.judge import Judge

LABELS = ("calm", "angry", "sad")
TEXTS = [
    "",
    "a",
    "no",
    "yes, of course",
    "今天天气很好",
    "x" * 70,
    "b",
    "answer: 42",
    "the end of it",
    "yes, of course",
]


def llama(path, *, seed, labels=("LABEL_0",), chat_template=models.CHAT_TEMPLATE, pad=models.PAD, **config) -> str:
    tokens = models.tokenizer(chat_template=chat_template)
    shape = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.5, bos_token_id=models.BOS,
        eos_token_id=models.EOS, pad_token_id=pad, id2label=dict(enumerate(labels)), **config,
    )  # fmt: skip
    return saved(LlamaForSequenceClassification, shape, tokens, path, seed)


def bert(path, *, seed, labels=LABELS, **config) -> str:
    tokens = models.tokenizer(chat_template=None, adds_eos=True)
    shape = BertConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=96, initializer_range=0.3, pad_token_id=models.PAD, id2label=dict(enumerate(labels)),
        **config,
    )  # fmt: skip
    return saved(BertForSequenceClassification, shape, tokens, path, seed)


def saved(kind, shape, tokens, path, seed) -> str:
    torch.manual_seed(seed)
    kind(shape).save_pretrained(path)
    tokens.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scorers")


@pytest.fixture(scope="module")
def rewards(folder) -> list[str]:
    return [llama(folder / f"reward-{seed}", seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def tones(folder) -> str:
    return bert(folder / "tones", seed=3)


def candidates(texts=TEXTS) -> list[Candidate]:
    return [candidate(text, text=f"What is {i}?") for i, text in enumerate(texts)]


def alone(folder: str, text: str, *, special: bool) -> torch.Tensor:
    """The logits of one text, asked as plainly as can be."""
    tokens = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokens(text, return_tensors="pt", add_special_tokens=special)).logits[0].double()


def reward_alone(folder: str, one: Candidate) -> float:
    text = f"<s>user: {one.prompt}\nassistant: {one.completion}\n"
    return alone(folder, text, special=False).item()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
@pytest.mark.parametrize(
    ("combine", "of"), [("mean", lambda s: sum(s) / 2), ("min", min), ("votes", lambda s: sum(x >= 0.6 for x in s) / 2)]
)
def test_an_ensemble_of_rewards_agrees_with_a_plain_loop(rewards, combine, of, batch_tokens) -> None:
    constraint = RewardModel(
        model=rewards, combine=combine, at_least=0.6, center=[0.0, 0.5], scale=2.0, batch_tokens=batch_tokens
    )
    asked = candidates()
    found = constraint.judge(asked)
    for one, verdict in zip(asked, found, strict=True):
        raw = [reward_alone(folder, one) for folder in rewards]
        scores = [sigmoid((r - center) / 2) for r, center in zip(raw, (0.0, 0.5), strict=True)]
        assert verdict.score == pytest.approx(of(scores), abs=1e-5)
        assert verdict.passed == (verdict.score > 0.5 if combine == "votes" else verdict.score >= 0.6)
        assert verdict.reason.startswith(f"reward {raw[0]:.3g}"[:9])
    assert len({verdict.score for verdict in found}) > 1
    backwards = constraint.judge(asked[::-1])[::-1]
    assert [v.score for v in backwards] == pytest.approx([v.score for v in found], abs=1e-5)
    assert {v.passed for v in RewardModel(model=rewards[0]).judge(asked)} == {True, False}


@pytest.mark.parametrize("side", ["wanted", "unwanted"])
def test_a_classifier_agrees_with_a_plain_loop(tones, side) -> None:
    asked = candidates([text for text in TEXTS if len(text) < 60])
    found = Classifier(model=tones, **{side: ["calm", "sad"]}).judge(asked)
    for one, verdict in zip(asked, found, strict=True):
        p = alone(tones, one.completion, special=True).softmax(-1)[[0, 2]].sum().item()
        assert verdict.score == pytest.approx(p if side == "wanted" else 1 - p, abs=1e-5)
        assert verdict.passed == (verdict.score >= 0.5)
        assert verdict.reason.startswith("P(calm or sad) = 0.")


def test_a_classifier_of_several_labels_at_once_takes_the_sigmoid_of_each(tmp_path) -> None:
    folder = bert(tmp_path / "toxic", seed=4, problem_type="multi_label_classification")
    (found,) = Classifier(model=folder, unwanted=["angry", "sad"]).judge(candidates(["no"]))
    logits = alone(folder, "no", special=True)
    assert found.score == pytest.approx(torch.sigmoid(-logits[1:]).prod().item(), abs=1e-5)


def test_without_a_chat_template_prompt_and_completion_are_a_pair(tmp_path) -> None:
    folder = bert(tmp_path / "pairs", seed=5, labels=("LABEL_0",))
    one = candidate("yes", text="Is it?")
    (found,) = RewardModel(model=folder).judge([one])
    tokens = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    raw = model(**tokens("Is it?", "yes", return_tensors="pt")).logits.item()
    assert found.score == pytest.approx(sigmoid(raw), abs=1e-5)


def test_a_model_without_a_pad_token_scores_texts_one_by_one(tmp_path, rewards) -> None:
    folder = llama(tmp_path / "unpadded", seed=1, pad=None)
    asked = candidates()
    expected = [v.score for v in RewardModel(model=rewards[0]).judge(asked)]
    assert [v.score for v in RewardModel(model=folder).judge(asked)] == pytest.approx(expected, abs=1e-5)


def test_what_is_too_long_is_an_error_of_that_candidate_alone(rewards) -> None:
    asked = candidates(["short", "y" * 200, "short too"])
    settings = {"name": "rm", "use": "rsft_cluster.constraints.models.reward_model:RewardModel"}
    judge = Judge([Constraint(**settings, params={"model": rewards[0]})])
    fine, long, also_fine = judge.judge(asked)
    assert fine.score is not None
    assert also_fine.score is not None
    assert long.score is None
    assert "tokens, and" in long.reason
    assert "truncate: left" in long.reason


def test_truncation_on_the_left_keeps_the_completion(rewards) -> None:
    long = candidate("y" * 60, text="p" * 300)
    (found,) = RewardModel(model=rewards[0], truncate="left").judge([long])
    text = f"<s>user: {long.prompt}\nassistant: {long.completion}\n"
    tokens = AutoTokenizer.from_pretrained(rewards[0])
    ids = tokens(text, add_special_tokens=False)["input_ids"][-128:]
    model = AutoModelForSequenceClassification.from_pretrained(rewards[0]).eval()
    assert found.score == pytest.approx(sigmoid(model(torch.tensor([ids])).logits.item()), abs=1e-5)


def test_a_reward_that_is_not_finite_is_an_error_of_that_candidate_alone(tmp_path) -> None:
    folder = llama(tmp_path / "nan", seed=1)
    model = LlamaForSequenceClassification.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokens("~", add_special_tokens=False)["input_ids"][0]] = float("nan")
    model.save_pretrained(folder)
    first, broken, last = RewardModel(model=folder).judge(candidates(["fine", "~", "fine too"]))
    assert first.score > 0
    assert last.score > 0
    assert isinstance(broken, ValueError)
    assert "is nan" in str(broken)


def test_a_batch_that_is_too_large_for_the_memory_is_halved(rewards, monkeypatch) -> None:
    asked = candidates()
    expected = [v.score for v in RewardModel(model=rewards[0]).judge(asked)]
    together, sizes = SequenceModel._forward_together, []

    def limited(self, rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return together(self, rows)

    monkeypatch.setattr(SequenceModel, "_forward_together", limited)
    assert [v.score for v in RewardModel(model=rewards[0]).judge(asked)] == pytest.approx(expected, abs=1e-5)
    assert max(sizes) == len(asked)


def test_bfloat16_is_near_float32(rewards) -> None:
    asked = candidates(["a", "no"])
    exact = [v.score for v in RewardModel(model=rewards[0]).judge(asked)]
    near = [v.score for v in RewardModel(model=rewards[0], dtype="bfloat16").judge(asked)]
    assert near == pytest.approx(exact, abs=0.1)
    assert near != exact


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "/nowhere"}, "reward_model: model '/nowhere' is no folder here"),
        ({"model": "TONES"}, "has 3 outputs, expected 1; is it a classifier?"),
        ({"model": ["REWARD", "REWARD"], "center": [1.0]}, "center has 1 values, expected one or 2"),
        ({"model": "PICKLED"}, "holds no config.json with .*safetensors"),
    ],
)
def test_a_wrong_reward_model_is_refused_when_built(settings, message, rewards, tones, tmp_path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(rewards[0], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    names = {"TONES": tones, "REWARD": rewards[0], "PICKLED": str(pickled)}
    model = settings["model"]
    settings["model"] = [names[m] for m in model] if isinstance(model, list) else names.get(model, model)
    with pytest.raises(ConfigError, match=message):
        RewardModel(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give labels as wanted or as unwanted"),
        ({"wanted": "calm", "unwanted": "sad"}, "give labels as wanted or as unwanted"),
        ({"wanted": "quiet"}, "classifier: wanted label 'quiet' is none of .*: calm, angry, sad"),
    ],
)
def test_a_wrong_classifier_is_refused_when_built(settings, message, tones) -> None:
    with pytest.raises(ConfigError, match=message):
        Classifier(model=tones, **settings)


def test_a_model_that_was_never_trained_to_score_is_refused(tmp_path) -> None:
    folder = models.tiny_llama(tmp_path / "policy")
    path = tmp_path / "policy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "LABEL_0"}}))
    constraint = RewardModel(model=folder)
    for _ in range(2):  # it is not loaded anew for each candidate
        with pytest.raises(ConfigError, match=r"lacks weights .*score.weight.*not trained to score"):
            constraint.judge(candidates(["a"]))


def test_raw_prompts_are_read_as_a_pair(rewards) -> None:
    raw = Candidate("yes", messages=(Message("raw", "Is it? "),))
    (found,) = RewardModel(model=rewards[0]).judge([raw])
    tokens = AutoTokenizer.from_pretrained(rewards[0])
    model = AutoModelForSequenceClassification.from_pretrained(rewards[0]).eval()
    ids = tokens("Is it? ", "yes", return_tensors="pt")["input_ids"]
    assert found.score == pytest.approx(sigmoid(model(ids).logits.item()), abs=1e-5)
