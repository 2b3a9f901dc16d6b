"""What a cluster lacks: a missing resource is named, and nothing is refused that could be placed."""

import pytest
from projects import settings

from rsft_cluster.config import RunConfig
from rsft_cluster.needs import Needs, describe_nodes, lacking, needs, pools


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
