"""What workers tell the driver of their progress."""

from rsft_cluster.config import TrainingConfig
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.training.job import TrainingJob, tell, told


def test_the_driver_reads_the_last_word_and_none_before_the_first(tmp_path):
    job = TrainingJob(
        name="t", policy=PolicySpec("/m"), examples=(), replay=None, config=TrainingConfig(), seed=0,
        output_uri=str(tmp_path / "model"), storage_uri=str(tmp_path / "state"),
    )  # fmt: skip
    assert told(job) is None
    tell(job, step=3, num_steps=9, loss=0.5)
    tell(job, step=4, num_steps=9, loss=0.25)
    assert told(job) == (4, 9, 0.25)
