"""From a YAML or JSON file and `--set` overrides to a `RunConfig`; every mistake is told with its file and key."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rsft_cluster.config import PromptsConfig, RunConfig
from rsft_cluster.errors import ConfigError

MAX_CONFIG_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (`1e-5`), and duplicate keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001 as inherited
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key_node, _), key in zip(node.value, keys, strict=True):
            if keys.count(key) > 1:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} stands twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
# Integers must win over the float pattern above, so they are put in front of it again.
for _first in "-+0123456789":
    _found = _Loader.yaml_implicit_resolvers[_first]
    _found.sort(key=lambda item: item[0] != "tag:yaml.org,2002:int")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML run config, apply `key.path=value` overrides, and validate it.

    Relative paths of prompts, replay, model and chat template become absolute, taken from the config file's
    folder; the store's from the working folder. Raises ConfigError naming file and key.
    """
    path = Path(path)
    raw = read_yaml(path)
    for override in overrides:
        raw = _override(raw, override)
    return parse_config(raw, where=str(path), base=path.parent)


def read_yaml(path: Path) -> Any:
    """Read one YAML document; raises ConfigError with file and line."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; that is no config")
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 a SafeLoader
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(raw: object, *, where: str, base: Path) -> RunConfig:
    """Validate a config read from YAML or JSON; `base` is what relative paths are taken from."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected a mapping with the keys {sorted(RunConfig.model_fields)}")
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from error
    return _absolute(config, base.resolve())


def _override(raw: object, override: str) -> object:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected key.path=value")
    if not isinstance(raw, dict):
        return raw
    copied = json.loads(json.dumps(raw))
    parts = key.split(".")
    node = copied
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {part!r} is not a mapping")
        node = child
    try:
        node[parts[-1]] = yaml.load(text, Loader=_Loader)  # noqa: S506 a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    return copied


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(p) for p in item["loc"]) or "(config)"
        said = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            said = f"unknown key{_near(item['loc'])}"
        elif item["type"] != "missing" and not isinstance(item["input"], dict):
            said = f"{said} (got {item['input']!r})"
        lines.append(f"{where}: {key}: {said}")
    return "\n".join(lines)


def _near(location: tuple[int | str, ...]) -> str:
    schema: Any = RunConfig.model_json_schema()
    definitions = schema["$defs"]
    node = schema
    for part in location[:-1]:
        node = _resolve(node, definitions)
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    known = sorted(_resolve(node, definitions).get("properties", {}))
    return f"; known here: {', '.join(known)}" if known else ""


def _resolve(node: Any, definitions: dict[str, Any]) -> Any:
    while "$ref" in node or "allOf" in node or "anyOf" in node:
        inner = node if "$ref" in node else (node.get("allOf") or node["anyOf"])[0]
        if "$ref" not in inner:
            return inner
        node = definitions[inner["$ref"].rsplit("/", 1)[-1]]
    return node


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
