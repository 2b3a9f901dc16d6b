"""Sample, accept, learn: the fine-tuned policy comes close to the rule's target, and to that one only.

On the enumerated language, so that KL(pi* || pi_theta) is exact. Learning uses the training stage's own batches, order
and losses in a plain loop: what DeepSpeed adds is compared with such a loop elsewhere.
"""

import math

import numpy as np
import pytest
import torch
from models import EOS
from oracles import enumerate_completions
from target_constraints import LENGTH
from targets import language
from transformers import AutoModelForCausalLM

from rsft_cluster.config import TrainingConfig
from rsft_cluster.training.batches import DataOrder, Example, collate, denominator
from rsft_cluster.training.losses import learned as positions
from rsft_cluster.training.losses import learning_rate, weighted_loss
from rsft_cluster.training.terms.nll import completion_nll

BETA = 0.25
NUM = 24_000
TRAINING = TrainingConfig(steps=140, batch_size=256, learning_rate=6e-3, warmup_steps=10, schedule="cosine")


@pytest.fixture(scope="module")
def lang(tmp_path_factory):
    return language(tmp_path_factory.mktemp("learning") / "model")


@pytest.fixture(scope="module")
def pool(lang, tmp_path_factory):
    return lang.judged(tmp_path_factory.mktemp("pool"), num=NUM)


def learned(lang, kept) -> dict[tuple[int, ...], float]:
    """Fine-tune a copy of the policy on what was kept; return its distribution."""
    model = AutoModelForCausalLM.from_pretrained(lang.path).train()
    prefix = np.asarray(lang.prefix, np.int32)
    examples = [Example(prefix, np.asarray(ids, np.int32), 1.0) for ids in kept]
    order = DataOrder(len(examples), min(TRAINING.batch_size, len(examples)), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=TRAINING.betas, weight_decay=0.0)
    for step in range(TRAINING.steps or 0):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(TRAINING, step, TRAINING.steps or 0)
        batch = [examples[i] for i in order.batch_indices(step)]
        rows = collate(batch)
        output = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask)
        loss = weighted_loss(completion_nll(positions(output.logits, rows.labels)), rows.weights, denominator(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return enumerate_completions(model.eval(), lang.prefix, end=EOS, temperature=1.0, length=LENGTH)


def kl(target, found) -> float:
    return sum(q * math.log(q / found[y]) for y, q in target.items())


def test_the_right_rule_brings_the_policy_to_the_target_and_no_other_does(lang, pool) -> None:
    target = lang.tilted(lang.policy(), BETA)
    start = kl(target, lang.policy())
    right = kl(target, learned(lang, pool.kept("boltzmann", beta=BETA)))
    wrong = {
        "hard alone": kl(target, learned(lang, pool.kept("all_passed"))),
        "beta doubled": kl(target, learned(lang, pool.kept("boltzmann", beta=2 * BETA))),
        "nothing rejected": kl(target, learned(lang, pool.kept("everything"))),
    }
    print(f"KL(target || policy): start {start:.3f}, right rule {right:.3f}, {wrong}")
    assert right < 0.08
    assert all(found > 0.15 for found in wrong.values()), wrong
    assert start > 0.5
