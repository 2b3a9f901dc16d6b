"""What a run is made of, as flat keys and values: two runs with equal fingerprints give equal results.

Resuming with another fingerprint is refused, the differing keys named. Operational settings (how many workers, how
many retries) are left out: they move work, not results.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version

import pyarrow.fs as pafs

from rsft_cluster.config import RunConfig, flatten, is_operational
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.prompts.paths import find_files
from rsft_cluster.records import PolicyRef
from rsft_cluster.schemas import digest
from rsft_cluster.store import Store, open_uri
from rsft_cluster.store.layout import RunLayout

LIBRARIES = ("rsft-cluster", "torch", "transformers", "tokenizers", "deepspeed")


def fingerprint(config: RunConfig, policy: PolicyRef) -> dict[str, object]:
    """Return the parts of a run's identity."""
    values = {k: v for k, v in flatten(config.model_dump(mode="json")).items() if not is_operational(k)}
    parts: dict[str, object] = {f"config.{k}": v for k, v in values.items()}
    parts["policy.digest"] = policy.digest
    for name, prompts in (("prompts", config.prompts), ("evaluation.prompts", config.evaluation.prompts)):
        for file in find_files(prompts.paths) if prompts.paths else ():
            parts[f"{name}.file {file.name}"] = _sha256(file.filesystem, file.path)
    for path in (config.training.replay, config.policy.chat_template):
        if path:
            parts[f"file {path}"] = _sha256(*open_uri(path))
    for library in LIBRARIES:
        parts[f"version.{library}"] = version(library)
    return parts


def claim_run(store: Store, parts: dict[str, object]) -> str:
    """Record the fingerprint of a fresh run, or check it against that of the run; return its digest.

    A run that has planned nothing yet is fresh: what stopped it may have been the very mistake that is now mended.
    Call with the lease held. Raises ConfigError naming every key that differs.
    """
    layout, payload = RunLayout(store), json.dumps(parts, ensure_ascii=False, sort_keys=True, indent=1).encode()
    path = layout.fingerprint
    if not store.create(path, payload) and store.read(path) != payload and not layout.round_numbers():
        store.delete_folder(layout.prompt_sets)
        if store.exists(layout.config):
            store.delete(layout.config)
        store.write(path, payload)
    recorded = _recorded(store, path)
    current = json.loads(payload)
    if differing := differing_keys(recorded, current):
        lines = [f"  {k}: was {_short(recorded.get(k))}, is {_short(current.get(k))}" for k in differing]
        raise ConfigError(
            f"{store.uri}: this run was begun with another configuration; going on would mix two. Put these back, or "
            "give the new configuration a `run` name of its own:\n" + "\n".join(lines)
        )
    return digest(recorded)


def differing_keys(recorded: Mapping[str, object], current: Mapping[str, object]) -> list[str]:
    """Return the keys under which two flat configurations differ, sorted."""
    keys = [key for key in recorded.keys() | current.keys() if not is_operational(key.removeprefix("config."))]
    return [key for key in sorted(keys) if _given(recorded, key) != _given(current, key)]


def _given(parts: Mapping[str, object], key: str) -> object:
    """Return a part's value; what is empty or off says no more than a key that an earlier version did not know."""
    value = parts.get(key)
    return None if value is False or value in ([], {}) else value


def _recorded(store: Store, path: str) -> dict[str, object]:
    try:
        parts = json.loads(store.read(path))
    except ValueError as error:
        raise StoreError(f"{store.uri_of(path)}: damaged: {error}") from error
    if not isinstance(parts, dict):
        raise StoreError(f"{store.uri_of(path)}: damaged: not a JSON object")
    return parts


def _sha256(filesystem: pafs.FileSystem, path: str) -> str:
    whole = hashlib.sha256()
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            while chunk := stream.read(1 << 22):
                whole.update(chunk)
    except StoreError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return whole.hexdigest()


def _short(value: object) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
