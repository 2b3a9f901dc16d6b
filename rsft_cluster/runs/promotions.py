"""The append-only log of promotions: which policy is current."""

from rsft_cluster.errors import ConfigError, StageError
from rsft_cluster.records import PolicyRef, Promotion
from rsft_cluster.store import Store


class PromotionLog:
    """The append-only log of which policy is current: `promotions/000012.json`, the highest number counts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def entries(self) -> list[Promotion]:
        """Return all entries, oldest first."""
        return [self._store.read_record(p, Promotion) for p in self._store.files("promotions")]

    def current(self) -> Promotion | None:
        """Return the newest entry, None before the run's first."""
        files = self._store.files("promotions")
        return self._store.read_record(files[-1], Promotion) if files else None

    def append(self, *, action: str, policy: PolicyRef, reason: str, round_number: int, epoch: int) -> Promotion:
        """Add an entry; raises StoreError's kin when another process added the same number first."""
        number = len(self._store.files("promotions"))
        entry = Promotion(number=number, action=action, policy=policy, reason=reason, round=round_number, epoch=epoch)
        if not self._store.create(f"promotions/{number:06d}.json", entry.to_json()):
            raise StageError(f"{self._store.uri}: promotion {number} was written by another process; start again")
        return entry

    def rollback(self, *, to: str | None, epoch: int) -> Promotion:
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
        return self.append(
            action="rollback", policy=earlier[target], reason=reason, round_number=entries[-1].round, epoch=epoch
        )


def _before(entries: list[Promotion], current: str) -> str | None:
    return next((e.policy.name for e in reversed(entries) if e.policy.name != current), None)
