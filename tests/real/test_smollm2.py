"""SmolLM2-135M-Instruct on the fast path: accepted in either type, faithful to `generate`, wrong engines refused."""

import statistics

import engine_faults
import pytest
import torch

from jobs.recipes.smollm2 import UnavailableModelError, make_model
from rsft_cluster.generators.base import Completion, Decoding, Prompt
from rsft_cluster.generators.engine.engine import Engine
from rsft_cluster.generators.engine.probe import UnsupportedModelError, layer_shapes
from rsft_cluster.generators.engine.trial import text_ids
from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import Message

pytestmark = pytest.mark.real

DTYPES = ("float32", "bfloat16")
NUM_TOKENS = 64
TOPICS = (
    "how rain forms", "the city of Rome", "why exercise is good", "how a bicycle works", "what a bank does",
    "the life cycle of a butterfly", "how bread is made", "why the sky is blue", "what gravity is", "an old castle",
)  # fmt: skip
TASKS = (
    "Explain {} to a child.", "Write three sentences about {}.", "Make a list of five facts about {}.",
    "Write a short letter to a friend about {}.", "What is the most surprising thing about {}?",
)  # fmt: skip
PROMPTS = [
    Prompt(f"p{i}", [Message(role="user", content=task.format(topic))])
    for i, (task, topic) in enumerate((task, topic) for task in TASKS for topic in TOPICS)
]


@pytest.fixture(scope="module")
def folder():
    try:
        return str(make_model())
    except UnavailableModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plain(folder):
    """The model as transformers has it, by type."""
    return {
        dtype: TransformersGenerator(PolicySpec(folder, dtype=dtype), engine="batches", compute_dtype=dtype)
        for dtype in DTYPES
    }


@pytest.fixture(scope="module")
def generated(plain):
    """What `generate` answers, prompt by prompt, by type."""
    return {dtype: [_generated(generator, prompt) for prompt in PROMPTS] for dtype, generator in plain.items()}


def _generated(generator, prompt):
    ids = torch.tensor([generator._encode(prompt, Decoding(max_tokens=NUM_TOKENS))])
    settings = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "pad_token_id": 2}
    with torch.inference_mode():
        answer = generator.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return answer[0, ids.shape[1] :].tolist()


def engine_answers(folder, dtype, *, compiled):
    policy = PolicySpec(folder, dtype=dtype)
    generator = TransformersGenerator(policy, engine="required", compiled=compiled, compute_dtype=dtype)
    assert isinstance(generator.decoder, Engine)
    greedy = Decoding(temperature=0.0, max_tokens=NUM_TOKENS, batch_size=50)
    answers: list[list[int]] = [[]] * len(PROMPTS)
    for completion in generator.generate(PROMPTS, greedy, [[0]] * len(PROMPTS)):
        assert isinstance(completion, Completion)
        answers[completion.prompt] = list(completion.token_ids)
    return answers


def first_difference(tokens, expected):
    pairs = enumerate(zip(tokens, expected, strict=False))
    shorter = min(len(tokens), len(expected))
    return next((i for i, (a, b) in pairs if a != b), NUM_TOKENS if len(tokens) == len(expected) else shorter)


@pytest.mark.parametrize("compiled", [True, False])
def test_in_float32_greedy_tokens_are_those_of_generate(folder, generated, compiled):
    assert engine_answers(folder, "float32", compiled=compiled) == generated["float32"]


@pytest.mark.parametrize("compiled", [True, False])
def test_in_bfloat16_greedy_tokens_stay_as_near_to_float32_as_those_of_generate(folder, generated, compiled):
    answers = engine_answers(folder, "bfloat16", compiled=compiled)
    medians = [
        statistics.median(map(first_difference, tokens, generated["float32"]))
        for tokens in (answers, generated["bfloat16"])
    ]
    print(f"median first difference from float32: engine {medians[0]}, generate {medians[1]}")
    assert medians[0] >= medians[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", engine_faults.ANYWHERE)
def test_an_engine_that_gets_it_wrong_is_refused(plain, fault, dtype, monkeypatch):
    generator = plain[dtype]
    fault(monkeypatch)
    with pytest.raises(UnsupportedModelError, match="its logits differ by"):
        layer_shapes(generator.model, text_ids(generator.tokenizer), compiled=False)
