"""Reward models in several scoring actors of a real Ray: they say what one process says, and GPUs are handed on."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from collecting import collection
from test_sequence_models import llama

from rsft_cluster.collection.pipeline import run_pass
from rsft_cluster.collection.plan import read_prompts_of
from rsft_cluster.collection.score_table import as_candidates
from rsft_cluster.config import Constraint, SamplingConfig, ScoringConfig
from rsft_cluster.constraints.base import Candidate, Verdict
from rsft_cluster.constraints.models.reward_model import RewardModel

pytestmark = pytest.mark.ray

TESTS = Path(__file__).resolve().parent.parent


def worker(_: Candidate) -> Verdict:
    """Say which process judges, and which GPUs it sees."""
    return Verdict.of(True, f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray that believes in two GPUs, so that their shares are handed out as on a machine that has them."""
    home = os.environ.get("HOME")
    own = tmp_path_factory.getbasetemp() / "home"  # Ray writes an access token there, once a process
    own.mkdir(exist_ok=True)
    os.environ["HOME"] = str(own)
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "ray")))
    ray.init(
        address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    yield
    ray.shutdown()
    if home is not None:
        os.environ["HOME"] = home


def test_scoring_actors_with_gpus_agree_with_one_process(tmp_path):
    models = [llama(tmp_path / f"reward-{seed}", seed=seed) for seed in (1, 2)]
    params = {"model": models, "combine": "min", "device": "cpu", "batch_tokens": 100}
    rewarded = Constraint(
        name="rewarded", use="rsft_cluster.constraints.models.reward_model:RewardModel", params=params
    )
    told = Constraint(name="told", use="test_reward_models:worker")
    made = collection(tmp_path / "store", num_prompts=24, unit_size=2)
    made.work = replace(
        made.work, scoring=ScoringConfig(constraints=(rewarded, told), workers=2, num_cpus=1, num_gpus=1)
    )
    list(run_pass(made.work, made.units(), SamplingConfig(num_candidates=4)))
    manifest, store = made.finish(), made.folder.store
    prompts = pa.concat_tables([read_prompts_of(store, unit) for unit in made.units()])
    candidates = pa.concat_tables([store.read_table(ref) for ref in manifest.candidates])
    scores = [row for ref in manifest.scores for row in store.read_table(ref).to_pylist()]
    by_id = {row["candidate_id"]: {v["constraint"]: v for v in row["verdicts"]} for row in scores}
    assert len(by_id) == 96
    asked = as_candidates(prompts, candidates)
    expected = {
        one.candidate_id: verdict for one, verdict in zip(asked, RewardModel(**params).judge(asked), strict=True)
    }
    for key, verdicts in by_id.items():
        assert verdicts["rewarded"]["score"] == pytest.approx(expected[key].score, abs=1e-5)
    seen = {verdicts["told"]["reason"] for verdicts in by_id.values()}
    assert {reason.split()[1] for reason in seen} == {"0", "1"}  # two actors, each with a GPU of its own
