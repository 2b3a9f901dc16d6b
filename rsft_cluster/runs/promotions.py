"""The append-only log of promotions: which policy is current."""

from rsft_cluster.errors import ConfigError, StageError
from rsft_cluster.records import PolicyRef, Promotion
from rsft_cluster.runs.lease import Lease
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout


class PromotionLog:
    """The append-only log of which policy is current: the entry of the highest number counts."""

    def __init__(self, store: Store) -> None:
        self._store, self._layout = store, RunLayout(store)

    def entries(self) -> list[Promotion]:
        """Return all entries, oldest first."""
        return [self._store.read_record(p, Promotion) for p in self._store.files(self._layout.promotions)]

    def current(self) -> Promotion | None:
        """Return the newest entry, None before the run's first."""
        files = self._store.files(self._layout.promotions)
        return self._store.read_record(files[-1], Promotion) if files else None

    def append(self, lease: Lease, *, action: str, policy: PolicyRef, reason: str, round_number: int) -> Promotion:
        """Add an entry under a lease.

        Raises AlreadyRunningError where the lease was taken over, StageError where the number was written meanwhile.
        """
        number = len(self._store.files(self._layout.promotions))
        entry = Promotion(
            number=number, action=action, policy=policy, reason=reason, round=round_number, epoch=lease.epoch
        )
        if not lease.publish(self._layout.promotion(number), entry):
            raise StageError(f"{self._store.uri}: promotion {number} was written by another process; start again")
        return entry

    def rollback(self, lease: Lease, *, to: str | None) -> Promotion:
        """Make an earlier policy current again: `to`, or the one before the current."""
        entries = self.entries()
        if not entries:
            raise ConfigError(f"{self._store.uri}: this run has promoted nothing yet; there is nothing to roll back")
        current = entries[-1].policy.name
        earlier = {e.policy.name: e.policy for e in entries}
        target = to or _before(entries, current)
        if target is None or target not in earlier or target == current:
            known = ", ".join(n for n in earlier if n != current) or "none"
            raise ConfigError(
                f"cannot roll back from {current} to {target}; policies that were current before: {known}"
            )
        reason = f"rolled back from {current} by hand"
        policy, number = earlier[target], entries[-1].round
        return self.append(lease, action="rollback", policy=policy, reason=reason, round_number=number)


def _before(entries: list[Promotion], current: str) -> str | None:
    return next((e.policy.name for e in reversed(entries) if e.policy.name != current), None)
