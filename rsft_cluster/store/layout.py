"""Where things lie in a run's store: every name of a path, once."""

from dataclasses import dataclass

from rsft_cluster.store import Store


@dataclass(frozen=True)
class Folder:
    """A collection's place in the store, and the names of its parts."""

    store: Store
    path: str
    """`rounds/0003`, or `rounds/0003/evaluation`."""

    def at(self, *parts: str) -> str:
        """Return a path below the folder."""
        return "/".join([self.path, *parts])

    @property
    def units(self) -> str:
        """The Parquet file that lists the units."""
        return self.at("plan", "units.parquet")

    @property
    def plan(self) -> str:
        """The plan's record, written after the units."""
        return self.at("plan", "plan.json")

    @property
    def manifest(self) -> str:
        """The seal."""
        return self.at("manifest.json")

    @property
    def imported(self) -> str:
        """The record of what was brought in, where a round's candidates are from elsewhere."""
        return self.at("imported.json")
