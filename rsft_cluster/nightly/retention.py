"""What is kept of old nights: everything of the newest, records and models to roll back to of the others."""

from collections.abc import Sequence

from rsft_cluster.config import NightlyConfig
from rsft_cluster.nightly.records import NightRecord
from rsft_cluster.records import Promotion
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout


def prune(store: Store, config: NightlyConfig, records: Sequence[NightRecord], log: Sequence[Promotion]) -> None:
    """Delete what `nightly.keep` and `nightly.keep_models` no longer hold; the current policy always stays."""
    models = {entry.policy.name: entry.policy.uri for entry in log}
    newest_first = list(dict.fromkeys(entry.policy.name for entry in reversed(log)))
    kept = {models[name] for name in newest_first[: config.keep_models + 1]}
    worked = [record for record in records if record.outcome != "nothing_new"]
    for record in worked[: -config.keep]:
        folder = RunLayout(store).night(record.date).path
        inside = [uri.removeprefix(f"{store.uri}/") for uri in kept if uri.startswith(f"{store.uri_of(folder)}/")]
        _clear(store, folder, inside)


def _clear(store: Store, folder: str, kept: Sequence[str]) -> None:
    """Delete a folder but for the folders below it that are kept."""
    if not kept:
        store.delete_folder(folder)
        return
    if folder in kept:
        return
    for path in store.files(folder):
        store.delete(path)
    for child in store.folders(folder):
        _clear(store, child, [path for path in kept if path == child or path.startswith(f"{child}/")])
