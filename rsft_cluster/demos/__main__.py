"""The embedded demo: `python -m rsft_cluster.demos jobs/configs/arithmetic.yaml`.

Makes the task, trains a tiny base model on 150 worked sums, lets a run improve it for three rounds, and puts two
controls at equal steps beside the result: more of the same worked sums, and the same loop without rejection.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.table import Table

from rsft_cluster.cluster import connect
from rsft_cluster.config import Plugin, RunConfig, TrainingConfig
from rsft_cluster.config_file import load_config
from rsft_cluster.demos import arithmetic
from rsft_cluster.demos.tiny import write_untrained
from rsft_cluster.errors import RsftError
from rsft_cluster.generators.base import PolicySpec
from rsft_cluster.records import Evaluation, TrainingResult
from rsft_cluster.report import results
from rsft_cluster.report.progress import Reporter, duration
from rsft_cluster.report.tables import rounds_table
from rsft_cluster.rounds import (
    evaluate_policy,
    opened,
    plan_round,
    run_round,
    sample_round,
    start,
    train_policy,
    train_round,
)
from rsft_cluster.runs import Run, summaries, take_in
from rsft_cluster.training.job import TrainingJob
from rsft_cluster.training.trainer import fine_tune

BASE_TRAINING = TrainingConfig(
    steps=300, batch_size=32, micro_batch_size=32, learning_rate=5e-3, warmup_steps=20, betas=(0.9, 0.98),
    weight_decay=0.01, workers=1, checkpoint_every=300,
)  # fmt: skip
NUM_WORKED, NUM_PROMPTS, NUM_HELD_OUT = 150, 800, 300


def main() -> int:
    """Run the demo and print its table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rsft_cluster.demos", description=__doc__)
    parser.add_argument("config", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    reporter = Reporter()
    try:
        config = load_config(arguments.config)
        with connect(config, concurrent_runs=2):
            prepare(config, reporter)
            controls = improve(config, reporter)
    except RsftError as error:
        reporter.console.print(f"error: {error}", style="red", highlight=False, markup=False)
        return error.exit_code
    show(config, controls, began)
    return 0


def prepare(config: RunConfig, reporter: Reporter) -> None:
    """Write the task and train the base model, unless an earlier invocation did."""
    base = Path(config.policy.model)
    task = Path(config.prompts.paths[0]).parent
    if (base / "config.json").exists():
        return
    arithmetic.write_task(
        task, seed=config.seed, num_worked=NUM_WORKED, num_prompts=NUM_PROMPTS, num_held_out=NUM_HELD_OUT
    )
    untrained = base.with_name("untrained")
    write_untrained(untrained, arithmetic.SYMBOLS, end=arithmetic.END, pad=arithmetic.PAD, seed=config.seed)
    with reporter.stage(f"base: learn {NUM_WORKED} sums"):
        outcome = fine_tune(
            TrainingJob(
                name="base", policy=PolicySpec(str(untrained)), examples=(), replay=str(task / "worked.jsonl"),
                config=BASE_TRAINING, seed=config.seed, output_uri=str(base),
                storage_uri=str(base.with_name("training")),
            )
        )  # fmt: skip
        reporter.training(outcome.num_steps, outcome.num_steps, outcome.final_loss)


def improve(config: RunConfig, reporter: Reporter) -> dict[str, Evaluation]:
    """Do all rounds, and both controls beside them; return the controls' evaluations.

    Beside, because stages of so small a model mostly wait for processes to start.
    """
    with opened(config) as run, ThreadPoolExecutor(1) as beside:
        prompts, held_out = (intake.path for intake in take_in(run))
        controls = beside.submit(train_controls, run, prompts, held_out)
        start(run, held_out, reporter)
        for number in range(1, config.rounds + 1):
            run_round(run, number, prompts, held_out, reporter)
        with reporter.stage("controls, at equal steps"):
            return controls.result()


def train_controls(run: Run, prompts: str, held_out: str) -> dict[str, Evaluation]:
    """Train and evaluate both controls."""
    silent = Reporter(quiet=True)
    return {
        "SFT only": sft_only(run, held_out, silent),
        "no rejection": without_rejection(run, prompts, held_out, silent),
    }


def sft_only(run: Run, held_out: str, reporter: Reporter) -> Evaluation:
    """Train the base on the worked sums alone, for as many steps as all rounds together."""
    arm = at_equal_steps(run, "sft_only")
    record = arm.round(1).at("training.json")
    trained = arm.keep(record, TrainingResult, lambda: train_policy(arm, 1, run.base, (), reporter))
    return evaluate_policy(arm, 1, trained.policy, held_out, reporter)


def without_rejection(run: Run, prompts: str, held_out: str, reporter: Reporter) -> Evaluation:
    """Train the base on every candidate that it gives, right or wrong, for as many steps as all rounds together."""
    acceptance = run.config.acceptance.model_copy(update={"rule": Plugin(use="everything")})
    arm = at_equal_steps(run, "no_rejection", acceptance=acceptance)
    sample_round(arm, plan_round(arm, 1, prompts, run.base), reporter)
    policy = train_round(arm, 1, run.base, reporter).policy
    return evaluate_policy(arm, 1, policy, held_out, reporter)


def at_equal_steps(run: Run, name: str, **changes: object) -> Run:
    """Return an arm of the run that takes in one round the steps of all the run's rounds."""
    steps = (run.config.training.steps or 0) * run.config.rounds
    training = run.config.training.model_copy(update={"steps": steps})
    config = run.config.model_copy(update={"training": training, **changes})
    return replace(run, config=config, arm=f"controls/{name}")


def show(config: RunConfig, controls: dict[str, Evaluation], began: float) -> None:
    """Print the rounds and the controls to stdout."""
    console = results()
    with opened(config) as run:
        rounds = summaries(run.store)
    console.print(rounds_table(rounds, title="Two-digit addition: rejection sampling fine-tuning, round by round"))
    table = Table(
        title="Controls, at equal steps",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("trained on")
    for name in ("greedy", "pass@1", f"pass@{config.evaluation.num_samples}"):
        table.add_column(name, justify="right")
    last = next(r.evaluation for r in reversed(rounds) if r.evaluation)
    for name, found in {"accepted samples": last, **controls}.items():
        table.add_row(name, *(f"{v:.3f}" for v in (found.greedy_accuracy, found.pass_at_1, found.pass_at_k)))
    console.print(table)
    console.print(f"{duration(time.monotonic() - began)} in all; the run is kept in {config.store}/{config.run}")


if __name__ == "__main__":
    sys.exit(main())
