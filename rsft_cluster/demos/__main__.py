"""The embedded demos: `python -m rsft_cluster.demos jobs/configs/arithmetic.yaml`, and credit, service and content.

Makes a task, trains a tiny base model on its worked examples, lets a run improve it for some rounds, and puts control
arms beside the result: the same steps on random candidates, and on more of the worked examples. With `--variants` the
demo's other ways of running are done as well, each a run of its own from the same base.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from rich.console import Console

from rsft_cluster.cluster.connection import connect
from rsft_cluster.config import RunConfig, TrainingConfig
from rsft_cluster.config.file import load_config
from rsft_cluster.demos import arithmetic, content, credit, service
from rsft_cluster.demos.tiny import write_untrained
from rsft_cluster.errors import ConfigError, RsftError, StoreError
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.progress import duration
from rsft_cluster.report.comparison import comparison_table
from rsft_cluster.report.console import results
from rsft_cluster.report.fairness_tables import fairness_table
from rsft_cluster.report.reporter import Reporter
from rsft_cluster.report.tables import rounds_table
from rsft_cluster.rounds.controls import run_controls
from rsft_cluster.rounds.loop import opened, run_round, start
from rsft_cluster.runs.prompt_sets import ingest_prompts
from rsft_cluster.runs.run import open_store
from rsft_cluster.runs.summary import RoundSummary, summaries
from rsft_cluster.training.job import TrainingJob
from rsft_cluster.training.trainer import fine_tune


class Task(Protocol):
    """What a module of this package says of its task."""

    @property
    def TITLE(self) -> str:
        """How the demo is called."""
        ...

    @property
    def SYMBOLS(self) -> str:
        """The signs that texts consist of: one token each."""
        ...

    @property
    def END(self) -> str:
        """The sign that ends a completion."""
        ...

    @property
    def PAD(self) -> str:
        """The padding sign."""
        ...

    @property
    def CONTEXT(self) -> int:
        """Tokens that the model reads at most."""
        ...

    @property
    def BASE_STEPS(self) -> int:
        """Steps in which the base learns the worked examples."""
        ...

    @property
    def VARIANTS(self) -> dict[str, list[str]]:
        """Other ways of running it: a name, and what it sets, as `--set` does."""
        ...

    def write_task(self, folder: Path, *, seed: int) -> None:
        """Write worked.jsonl, prompts.jsonl and held_out.jsonl."""
        ...


TASKS: dict[str, Task] = {"arithmetic": arithmetic, "content": content, "credit": credit, "service": service}


def main() -> int:
    """Run a demo and print its tables; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rsft_cluster.demos", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as with `rsft run`")
    parser.add_argument("--variants", action="store_true", help="do the demo's other ways of running as well")
    arguments = parser.parse_args()
    reporter = Reporter()
    try:
        demo(arguments.config, arguments.set, reporter, variants=arguments.variants)
    except RsftError as error:
        reporter.console.print(f"error: {error}", style="red", highlight=False, markup=False)
        return error.exit_code
    return 0


def demo(path: Path, given: list[str], reporter: Reporter, *, variants: bool) -> None:
    """Prepare a demo, do its runs and print what came of them."""
    began = time.monotonic()
    config = load_config(path, given)
    task = TASKS.get(config.run)
    if task is None:
        raise ConfigError(f"{path}: run is {config.run!r}; there are demos of {', '.join(TASKS)}")
    others = {
        name: load_config(path, [*given, *sets, f"run={config.run}-{number}"])
        for number, (name, sets) in enumerate(task.VARIANTS.items() if variants else (), 1)
    }
    with connect(config, concurrent_runs=2):
        prepare(task, config, reporter)
        improve(config, reporter)
        for name, other in others.items():
            reporter.note(f"variant: {name}")
            improve(other, reporter)
    show(task, config, others)
    results().print(f"{duration(time.monotonic() - began)} in all; kept in {config.store}/{config.run}")


def base_training(num_steps: int) -> TrainingConfig:
    """Return how a base learns its worked examples."""
    return TrainingConfig(
        steps=num_steps, batch_size=32, micro_batch_size=32, learning_rate=5e-3, warmup_steps=20, betas=(0.9, 0.98),
        weight_decay=0.01, workers=1, checkpoint_every=num_steps,
    )  # fmt: skip


def prepare(task: Task, config: RunConfig, reporter: Reporter) -> None:
    """Write the task and train the base model, unless an earlier invocation did."""
    base = Path(config.policy.model)
    if (base / "config.json").exists():
        return
    folder = Path(config.prompts.paths[0]).parent
    try:
        task.write_task(folder, seed=config.seed)
    except OSError as error:
        raise StoreError(f"{folder}: the task cannot be written: {error}; copy jobs/ to where it can") from error
    untrained = base.with_name("untrained")
    write_untrained(
        untrained, task.SYMBOLS, end=task.END, pad=task.PAD, num_context_tokens=task.CONTEXT, seed=config.seed
    )
    with reporter.stage("base: learn worked examples"):
        outcome = fine_tune(
            TrainingJob(
                name="base", policy=PolicySpec(str(untrained)), examples=(), replay=str(folder / "worked.jsonl"),
                config=base_training(task.BASE_STEPS), seed=config.seed, output_uri=str(base),
                storage_uri=str(base.with_name("training")),
            )
        )  # fmt: skip
        reporter.training(outcome.num_steps, outcome.num_steps, outcome.final_loss)


def improve(config: RunConfig, reporter: Reporter) -> None:
    """Do all rounds, and the controls beside the rounds that follow.

    Beside, because stages of so small a model mostly wait for processes to start.
    """
    silent = Reporter(quiet=True)
    with opened(config) as run, ThreadPoolExecutor(1) as beside:
        prompts, held_out = (intake.path for intake in ingest_prompts(run))
        start(run, held_out, reporter)
        controls = []
        for number in range(1, config.rounds + 1):
            run_round(run, number, prompts, held_out, reporter)
            controls.append(beside.submit(run_controls, run, number, held_out, silent))
        with reporter.stage("controls"):
            for control in controls:
                control.result()


def show(task: Task, config: RunConfig, others: dict[str, RunConfig]) -> None:
    """Print the rounds, the controls and the variants to stdout."""
    console, rounds = results(), _rounds(config)
    console.print(rounds_table(rounds, title=f"{task.TITLE}: round by round"))
    if config.controls.arms:
        console.print(comparison_table(rounds))
    _show_fairness(console, rounds)
    for name, other in others.items():
        console.print(rounds_table(_rounds(other), title=f"Variant: {name}"))
        _show_fairness(console, _rounds(other)[-1:])


def _show_fairness(console: Console, rounds: list[RoundSummary]) -> None:
    """Print how decisions fall by protected values, in the first and the last of some rounds."""
    reports = [(r.round, r.fairness) for r in rounds if r.fairness]
    for number, report in dict([*reports[:1], *reports[-1:]]).items():
        console.print(fairness_table(report, decoding="sampled", title=f"Fairness, round {number}"))


def _rounds(config: RunConfig) -> list[RoundSummary]:
    return summaries(open_store(config))


if __name__ == "__main__":
    sys.exit(main())
