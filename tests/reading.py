"""Reading prompts in tests: from paths and config fields to rows, bad lines and counts."""

from typing import Any

import pytest

from rsft_cluster.config import Columns, PromptsConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.prompts import BadLine, Intake, read_prompts


def config(*paths: object, **more: Any) -> PromptsConfig:
    columns = Columns(**more.pop("columns", {}))
    return PromptsConfig(paths=tuple(map(str, paths)), columns=columns, **{"max_bad_rate": 1.0, **more})


def read(*paths: object, **more: Any) -> tuple[list[dict], list[BadLine], Intake]:
    bad: list[BadLine] = []
    intake = read_prompts(config(*paths, **more), on_bad=bad.append)
    rows = [row for batch in intake for row in batch.to_pylist()]
    return rows, bad, intake


def texts(rows: list[dict]) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows]


def refusal(*paths: object, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*paths, **more)
    return str(caught.value)
