"""What became of each night, as it stands in the store."""

from rsft_cluster.night_records import NightRecord
from rsft_cluster.runs import read_record
from rsft_cluster.store import Store


def record_of(store: Store, night: str) -> NightRecord | None:
    """Return what became of a night, None while it is not over."""
    return read_record(store, record_path(night), NightRecord)


def records(store: Store) -> list[NightRecord]:
    """Return the nights that are over, oldest first."""
    return [store.read_record(path, NightRecord) for path in store.files("nights")]


def record_path(night: str) -> str:
    """Return where the record of a night stands."""
    return f"nights/{night}.json"
