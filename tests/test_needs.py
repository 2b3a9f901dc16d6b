"""What a cluster lacks, and how many workers fit on what it has left."""

import pytest
from projects import settings

from rsft_cluster.cluster.needs import Needs, describe_nodes, fitting, lacking, needs, pools
from rsft_cluster.config import RunConfig, SamplingConfig, ScoringConfig


def said(nodes, **changes):
    config = RunConfig.model_validate(settings(**changes))
    return [line for stage in pools(config) for line in lacking(stage, [Needs(*node) for node in nodes])]


GPUS = {"sampling__num_gpus": 4, "sampling__workers": 4, "sampling__num_cpus": 2}


@pytest.mark.parametrize("nodes", [[(8, 16)] * 2, [(2, 4)] * 4 + [(2, 0)], [(100, 100)]])
def test_what_can_be_placed_is_not_refused(nodes):
    assert said(nodes, **GPUS) == []


def test_an_actor_that_fits_on_no_node_is_named_however_many_there_are():
    (line,) = said([(64, 2)] * 50, **GPUS)
    assert line == (
        "one actor of sampling asks for 2 CPUs and 4 GPUs, and no node has as much "
        "(50 nodes: 50 x 64 CPUs and 2 GPUs): lower sampling.num_cpus or sampling.num_gpus, or add a larger node"
    )


def test_actors_are_not_split_over_nodes():
    (line,) = said([(64, 6)] * 3, **GPUS)
    assert line.startswith("sampling asks for 4 actors of 2 CPUs and 4 GPUs each, and 3 of them fit (3 nodes: 3 x 64")


def test_the_missing_resource_is_named_where_all_pools_together_are_too_much():
    (line,) = said([(4, 0)], sampling__workers=3, scoring__workers=2)
    assert line == (
        "2 CPUs are missing for sampling and scoring: 6 CPUs and 0 GPUs are needed, 1 CPU for Ray among them, and "
        "there is room on 1 node: 4 CPUs and 0 GPUs; lower workers, num_cpus or num_gpus, or add nodes"
    )


def test_a_stage_is_lacking_by_itself():
    (line,) = said([(16, 0)], training__num_gpus=1)
    assert line.startswith("one actor of training asks for 1 CPUs and 1 GPUs, and no node has as much (1 node: 16 CPUs")
    assert said([]) != []


def test_of_a_range_the_lower_bound_must_find_room():
    workers = {"sampling__workers": {"min": 2, "max": 100}}
    assert said([(4, 0)], **workers) == []
    assert needs(RunConfig.model_validate(settings(**workers))) == Needs(4, 0)


def test_shares_of_a_gpu_add_up():
    assert said([(8, 1)], scoring__workers=4, scoring__num_gpus=0.25) == []
    assert said([(40, 1)], scoring__workers=10, scoring__num_gpus=0.1) == []
    assert said([(8, 1)], scoring__workers=5, scoring__num_gpus=0.25)


def test_nodes_are_counted_by_kind():
    assert describe_nodes([Needs(8, 4), Needs(2, 0), Needs(8, 4)]) == (
        "3 nodes: 2 x 8 CPUs and 4 GPUs, 2 CPUs and 0 GPUs"
    )


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
