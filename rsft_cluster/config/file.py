"""From a YAML or JSON file and `--set` overrides to a `RunConfig`; mistakes are reported with origin and key."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rsft_cluster.config import PromptsConfig, RunConfig, strict_yaml
from rsft_cluster.config.mistakes import explain, shown
from rsft_cluster.config.strict_yaml import Location
from rsft_cluster.config.uris import check_uri, holds_secret, without_userinfo
from rsft_cluster.errors import ConfigError

MAX_CONFIG_BYTES = 1 << 20

Origins = dict[Location, str]
"""Where each key was given: `run.yaml:12`, or `--set sampling.workers=4`. The file itself is at ()."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML run config, apply `key.path=value` overrides, and validate it.

    Relative paths of prompts, replay, model and chat template become absolute, taken from the config file's
    folder; the store's from the working folder. Raises ConfigError naming file, line and key.
    """
    path = Path(path)
    raw, origins = _read(path)
    for override in overrides:
        _override(raw, origins, override)
    return parse_config(raw, origins=origins, base=path.parent)


def load_sections(
    base: RunConfig,
    names: Sequence[str],
    *,
    path: Path | None = None,
    options: Mapping[str, object] | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Return a run's config with some sections set anew.

    `path` is a file with some of the sections `names`, or a whole config of which only those count; `options` are keys
    from the command line, by dotted path; `overrides` are `--set`. Raises ConfigError naming origin and key, also for a
    key of another section.
    """
    raw = json.loads(base.model_dump_json())
    origins: Origins = {(): "the run's config"}
    if path is not None:
        sections, origins = _read(path)
        if set(sections) - set(names):
            load_config(path)
        if not set(sections) & set(names):
            raise ConfigError(f"{path}: expected a section {' or '.join(names)}, or a whole config; found neither")
        raw.update({name: sections[name] for name in names if name in sections})
    for key, value in (options or {}).items():
        section, name = key.split(".")
        raw[section][name] = value
        origins[section, name] = f"--{name.replace('_', '-')}"
    for override in overrides:
        if override.partition(".")[0].partition("=")[0].strip() not in names:
            raise ConfigError(f"--set {override}: only keys of {' and '.join(names)} can be set here")
        _override(raw, origins, override)
    return parse_config(raw, origins=origins, base=Path())


def parse_config(raw: object, *, origins: Mapping[Location, str], base: Path) -> RunConfig:
    """Validate a config read from YAML or JSON; `base` is what relative paths are taken from.

    Types are meant as they are written: `4` is a number and `"4"` is text.
    """
    _refuse_secrets(raw, origins)
    try:
        config = RunConfig.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise ConfigError(explain(error, lambda location: _origin(origins, location))) from error
    try:
        return _absolute(config, base.resolve())
    except (RuntimeError, OSError) as error:  # `~nobody/x`, or a name too long for the file system
        raise ConfigError(f"{origins[()]}: a path in it cannot be used: {error}") from error


def check_store_uri(uri: str) -> None:
    """Raise ConfigError for a URI that names no bucket, or holds credentials or options."""
    scheme, separator, rest = uri.partition("://")
    if separator and not rest.strip("/"):
        raise ConfigError(f"{uri}: names no place; expected something like {scheme}://bucket/folder")
    check_uri(uri)


def _refuse_secrets(node: object, origins: Mapping[Location, str], location: Location = ()) -> None:
    """Raise ConfigError for credentials in a URI, before anything repeats or stores them."""
    if isinstance(node, str) and holds_secret(node):
        origin = without_userinfo(_origin(origins, location))
        raise ConfigError(
            f"{origin}: {'.'.join(map(str, location))}: credentials stand in this URI; expected "
            "scheme://bucket/folder, and the credentials in the environment of every node (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY for s3)"
        )
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        _refuse_secrets(child, origins, (*location, key))


def _read(path: Path) -> tuple[dict[str, Any], Origins]:
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; expected a YAML file")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; that is no config")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such config file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); expected a YAML file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        raw, lines = strict_yaml.read(text)
    except ConfigError as error:
        raise ConfigError(f"{path}:{error}") from error
    if not isinstance(raw, dict):
        content = "nothing" if raw is None else shown(raw)
        keys = ", ".join(RunConfig.model_fields)
        raise ConfigError(f"{path}: expected a mapping with the keys {keys}; found {content}")
    return raw, {(): str(path)} | {location: f"{path}:{line}" for location, line in lines.items()}


def _origin(origins: Mapping[Location, str], location: Location) -> str:
    """Return where a key was given; for one that is missing, where its section is."""
    while location not in origins:
        location = location[:-1]
    return origins[location]


def _override(raw: dict[str, Any], origins: Origins, override: str) -> None:
    """Set one key of `raw`; sections on the way to it are made where there are none."""
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override}: expected key=value, like sampling.workers=4")
    try:
        value, _ = strict_yaml.read(text)
    except ConfigError as error:
        raise ConfigError(f"--set {override}: the value, as YAML: {error}") from error
    node: Any = raw
    location: Location = ()
    for part in parts[:-1]:
        step = _step(node, part, location, override)
        if isinstance(node, dict) and node.get(step) is None:
            node[step] = {}
        node, location = node[step], (*location, step)
    step = _step(node, parts[-1], location, override)
    node[step] = value
    location = (*location, step)
    for known in [k for k in origins if k[: len(location)] == location]:
        del origins[known]
    origins[location] = f"--set {override}"


def _step(node: object, part: str, location: Location, override: str) -> str | int:
    """Return `part` as what it is within `node`: a mapping's key or a list's position."""
    if isinstance(node, dict):
        return part
    where = ".".join(map(str, location))
    if not isinstance(node, list):
        raise ConfigError(
            f"--set {override}: {where} is {shown(node)}, which has nothing named {part!r} in it; "
            f"set {where} as a whole, like {where}={{...}}"
        )
    if not part.isdecimal() or int(part) >= len(node):
        raise ConfigError(
            f"--set {override}: {where} is a list of {len(node)}, counted from 0; there is no entry {part!r}"
        )
    return int(part)


def _absolute(config: RunConfig, base: Path) -> RunConfig:
    def local(path: str | None) -> str | None:
        if path is None or "://" in path:
            return path
        return str((base / Path(path).expanduser()).resolve())

    def prompts(part: PromptsConfig) -> PromptsConfig:
        return part.model_copy(update={"paths": tuple(str(local(p)) for p in part.paths)})

    model = config.policy.model
    looks_like_path = model.startswith((".", "/", "~")) or (base / model).exists()
    policy = config.policy.model_copy(
        update={
            "model": local(model) if looks_like_path else model,
            "adapter": local(config.policy.adapter),
            "chat_template": local(config.policy.chat_template),
        }
    )
    evaluation = config.evaluation.model_copy(update={"prompts": prompts(config.evaluation.prompts)})
    training = config.training.model_copy(update={"replay": local(config.training.replay)})
    store = config.store if "://" in config.store else str(Path(config.store).expanduser().resolve())
    return config.model_copy(
        update={
            "policy": policy,
            "prompts": prompts(config.prompts),
            "evaluation": evaluation,
            "training": training,
            "store": store,
        }
    )
