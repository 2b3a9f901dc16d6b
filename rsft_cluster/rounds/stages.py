"""The stages, each a function that a test or a notebook can call alone: sample and judge, train, evaluate.

    with hold(Store("runs/try")) as lease:
        manifest = sample(config, plan, folder, selection_rules(config, 1), Site(lease, Reporter()))

`run_stages.py` binds them to a run, where each resumes at its artefact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rsft_cluster.acceptance.decide import bind_rule
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.collection.actors import Work
from rsft_cluster.collection.collect import collect
from rsft_cluster.collection.pipeline import sampled, units_a_pass
from rsft_cluster.config import AcceptanceConfig, RunConfig, SamplingConfig, TrainingConfig
from rsft_cluster.evaluation import figures
from rsft_cluster.metrics.exported import RayMeter
from rsft_cluster.plugins import bind
from rsft_cluster.policies.references import folder_digest, master_of, policy_spec, verify
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.progress import Listener, Progress
from rsft_cluster.records import Evaluation, FairnessReport, Manifest, Plan, PolicyRef, Totals, TrainingResult
from rsft_cluster.runs.lease import Lease
from rsft_cluster.store import Store
from rsft_cluster.store.layout import EvaluationLayout, Folder, RoundLayout
from rsft_cluster.training.job import TrainingJob
from rsft_cluster.training.terms.configured import active_terms
from rsft_cluster.training.trainer import fine_tune


@dataclass(frozen=True)
class Site:
    """Where a stage works and who hears of it; nothing here changes what the stage gives."""

    lease: Lease
    """Under which records are put; its store is the stage's."""
    listener: Listener
    label: str = ""
    """How metrics name the run."""
    trust_remote_code: bool = False

    @property
    def store(self) -> Store:
        """The store of the run."""
        return self.lease.store

    def spec(self, config: RunConfig, policy: PolicyRef, stage: SamplingConfig | TrainingConfig) -> PolicySpec:
        """Return a policy as the workers of a stage load it."""
        return policy_spec(
            policy,
            config.policy,
            trust_remote_code=self.trust_remote_code,
            threads=stage.threads,
            gpu=stage.num_gpus > 0,
        )


@dataclass(frozen=True)
class Examples:
    """What a training learns from, as URIs of Parquet files."""

    accepted: tuple[str, ...]
    """ACCEPTED rows."""
    judged: tuple[tuple[str, str], ...] = ()
    """CANDIDATE rows, each file with that of their SCORE rows; for terms of the loss over judged candidates."""


def sample(
    config: RunConfig,
    plan: Plan,
    folder: Folder,
    selection: SelectionRules,
    site: Site,
    *,
    metric_stage: str = "sample",
    decides: bool = True,
    earlier: Sequence[Totals] = (),
) -> Manifest:
    """Sample and judge what a plan asks of its policy, on the Ray cluster; return the sealed manifest.

    Units are decided as they are judged, unless `decides` is false. `earlier` are the totals of the round's earlier
    waves. Raises as `collect` does.
    """
    work = Work(
        store_uri=site.store.uri,
        folder=folder.path,
        session=site.lease.session,
        plan=plan,
        policy=site.spec(config, plan.policy, config.sampling),
        generator=bind(config.sampling.generator, "generators", num_leading=1),
        scoring=config.scoring,
        selection=selection,
        decides=decides,
        unit_timeout_s=config.sampling.unit_timeout_s,
        meter=RayMeter(site.label, metric_stage),
    )
    return collect(
        work,
        sampled(work, config.sampling),
        config.cluster,
        reporting(site.listener),
        site.lease.publish,
        earlier=earlier,
        units_a_pass=units_a_pass(config.sampling),
    )


def train(
    config: RunConfig, number: int, initial: PolicyRef, examples: Examples, folder: RoundLayout, site: Site,
    *, base: PolicyRef, keeps_master: bool = True,
) -> TrainingResult:  # fmt: skip
    """Fine-tune a policy on examples and the replay file, into the folder of round `number`.

    `base` is the policy of round 0, which a term of the loss may keep close to. With `keeps_master` the next training
    finds the float32 weights beside a policy of fewer bits. Raises as `fine_tune` does, and
    StoreError where a policy is not what its record says.
    """
    training, store = config.training, site.store
    needs_base = any(term.needs_base for term in active_terms(training))
    for policy in (initial, base) if needs_base else (initial,):
        verify(policy)
    job = TrainingJob(
        name=folder.path.replace("/", "-"),
        policy=replace(site.spec(config, initial, training), master=master_of(initial)),
        examples=examples.accepted,
        replay=training.replay,
        config=training,
        seed=config.seed + number,
        output_uri=store.uri_of(folder.model),
        storage_uri=store.uri_of(folder.checkpoints),
        judged=examples.judged,
        base=site.spec(config, base, training) if needs_base else None,
        keeps_master=keeps_master,
        meter=RayMeter(site.label),
    )
    store.delete_folder(folder.model)
    with site.listener.stage(f"round {number}: train"):
        outcome = fine_tune(job, site.listener.training)
        site.listener.training(outcome.num_steps, outcome.num_steps, outcome.final_loss)
    trained = PolicyRef(name=f"round-{number:04d}", uri=job.output_uri, digest=folder_digest(job.output_uri))
    return TrainingResult(
        policy=trained,
        started_from=initial.name,
        num_examples=outcome.num_examples,
        num_replayed=outcome.num_replayed,
        num_steps=outcome.num_steps,
        first_loss=outcome.first_loss,
        final_loss=outcome.final_loss,
    )


def evaluate(config: RunConfig, plan: Plan, folder: EvaluationLayout, site: Site) -> Evaluation:
    """Answer the held-out prompts of a plan with its policy and return the figures.

    Where fairness is configured, its report is put beside them.
    """
    fairness, workers = config.fairness, config.evaluation.workers or config.sampling.workers
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"workers": workers})})
    # Candidates of an evaluation are judged and never learned from, so duplicates stay.
    acceptance = AcceptanceConfig(dedupe=False)
    selection = SelectionRules(bind_rule(acceptance), acceptance, fairness=fairness and fairness.observing())
    manifest = sample(config, plan, folder, selection, site, metric_stage="evaluate")
    if fairness and not site.store.exists(folder.fairness):
        report: FairnessReport = figures.evaluate_fairness(folder, plan, manifest, fairness)
        site.lease.publish(folder.fairness, report)
    return figures.evaluate(folder, manifest, config.evaluation)


def reporting(listener: Listener) -> Callable[[Progress], None]:
    """Return what tells a listener of a collection's progress, and of each remark of the generators once."""
    noted: set[str] = set()

    def report(progress: Progress) -> None:
        for remark in progress.remarks:
            if remark not in noted:
                noted.add(remark)
                listener.note(f"sampling: {remark}")
        listener.collecting(progress)

    return report
