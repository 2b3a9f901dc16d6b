"""The mean of the weights: what it is, that it survives a restart, and what is exported of it."""

import pytest
import torch

from rsft_cluster.training.averaging import WeightAverage

STEPS = [torch.tensor([float(i * i), 1.0]) for i in range(1, 7)]


def average(decay: float, steps: list[torch.Tensor], *, first: int = 1, into: WeightAverage | None = None):
    mean = into or WeightAverage(decay)
    for step, weight in enumerate(steps, first):
        mean.add([("w", weight)], step=step)
    return mean


def weight_of(mean: WeightAverage) -> torch.Tensor:
    return mean.over({"w": torch.zeros(2)})["w"]


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.99, 0.9999])
def test_a_step_counts_by_its_age_and_the_start_not_at_all(decay):
    shares = torch.tensor([decay**age for age in reversed(range(len(STEPS)))])
    expected = (torch.stack(STEPS) * shares[:, None]).sum(0) / shares.sum()
    torch.testing.assert_close(weight_of(average(decay, STEPS)), expected, rtol=1e-4, atol=1e-5)


def test_the_mean_goes_on_from_a_checkpoint(tmp_path):
    average(0.9, STEPS[:4]).save(tmp_path)
    again = WeightAverage(0.9)
    again.load(tmp_path, torch.device("cpu"))
    found = weight_of(average(0.9, STEPS[4:], first=5, into=again))
    assert torch.equal(found, weight_of(average(0.9, STEPS)))
    assert not torch.equal(found, weight_of(average(0.9, STEPS[4:])))


def test_small_changes_of_bfloat16_weights_add_up_in_the_mean():
    steps = [torch.tensor([1.0, 1.0 + i / 128], dtype=torch.bfloat16) for i in (0, 1, 0, 1)]
    mean = average(0.999999, steps)
    torch.testing.assert_close(weight_of(mean), torch.tensor([1.0, 1 + 1 / 256]), rtol=1e-6, atol=0)


def test_parameters_are_replaced_in_their_dtype_and_buffers_stay():
    mean = average(0.5, STEPS)
    state = {"w": torch.zeros(2, dtype=torch.bfloat16), "buffer": torch.ones(3)}
    found = mean.over(state)
    assert found["w"].dtype == torch.bfloat16
    assert torch.equal(found["buffer"], state["buffer"])
