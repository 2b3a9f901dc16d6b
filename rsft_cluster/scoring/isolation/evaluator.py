"""The evaluator of a scoring actor: constraints in processes that can be killed, but for those that opt out."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from weakref import finalize

from rsft_cluster import config
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.building import is_isolated
from rsft_cluster.constraints.outcomes import Outcome
from rsft_cluster.scoring.evaluator import InProcessEvaluator, Observer
from rsft_cluster.scoring.isolation.pool import ProcessPool


class IsolatedEvaluator:
    """Runs constraints in a pool of processes and, meanwhile, those with `isolated = False` in this process.

    `close` ends the pool; so does the end of this object.
    """

    def __init__(
        self,
        constraints: Sequence[config.Constraint],
        *,
        num_processes: int,
        memory_bytes: int,
        observer: Observer | None = None,
    ) -> None:
        self._in_process = InProcessEvaluator(constraints, observer=observer)
        self._observer = observer
        self._isolated = [is_isolated(constraint) for constraint in self._in_process.constraints]
        self._pool = None
        if any(self._isolated):
            self._pool = ProcessPool(constraints, num_processes=num_processes, memory_bytes=memory_bytes)
            finalize(self, self._pool.close)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()

    def evaluate(self, candidates: Sequence[Candidate], indices: Sequence[Sequence[int]]) -> list[list[Outcome]]:
        """Return a column of outcomes for each constraint."""
        if self._pool is None:
            return self._in_process.evaluate(candidates, indices)
        isolated = self._isolated[: len(indices)]
        pooled = [rows if is_pooled else () for rows, is_pooled in zip(indices, isolated, strict=True)]
        if pooled == list(indices):
            return self._pool.judge(candidates, pooled, observer=self._observer)
        local = [() if is_pooled else rows for rows, is_pooled in zip(indices, isolated, strict=True)]
        with ThreadPoolExecutor(1) as thread:
            future = thread.submit(self._pool.judge, candidates, pooled, observer=self._observer)
            columns = self._in_process.evaluate(candidates, local)
            return [a if i else b for a, b, i in zip(future.result(), columns, isolated, strict=True)]
