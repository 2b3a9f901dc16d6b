"""How many workers fit on what a cluster has left."""

import pytest

from rsft_cluster.config import SamplingConfig, ScoringConfig
from rsft_cluster.needs import Needs, fitting


def placed(samplers, scorers, num_cpus, num_gpus=0.0, gpus_a_sampler=0.0):
    sampling = SamplingConfig(workers=samplers, num_gpus=gpus_a_sampler)
    scoring = ScoringConfig(constraints=("finished",), workers=scorers)
    return fitting(sampling, scoring, Needs(num_cpus, num_gpus))


def test_what_fits_is_placed_as_asked():
    assert placed(3, 1, 5) == (3, 1)
    assert placed(3, 2, 100) == (3, 2)
    assert placed(8, 16, 25, 8, 1) == (8, 16)


@pytest.mark.parametrize("num_cpus", range(3, 30))
@pytest.mark.parametrize(("samplers", "scorers"), [(3, 1), (1, 3), (8, 16), (16, 8), (5, 5)])
def test_on_less_both_are_there_and_no_cpu_is_left_that_either_could_have(samplers, scorers, num_cpus):
    a, b = placed(samplers, scorers, num_cpus)
    assert 1 <= a <= samplers
    assert 1 <= b <= scorers
    assert a + b == min(num_cpus - 1, samplers + scorers)
    assert abs(a / samplers - b / scorers) <= max(1 / samplers, 1 / scorers) + 1e-9 or 1 in (a, b)


def test_gpus_bound_the_workers_that_ask_for_them():
    assert placed(8, 4, 100, 4, 1)[0] == 4


@pytest.mark.parametrize("num_cpus", [0, 1, 2])
def test_one_of_each_is_asked_for_whatever_is_there(num_cpus):
    assert placed(3, 2, num_cpus) == (1, 1)
