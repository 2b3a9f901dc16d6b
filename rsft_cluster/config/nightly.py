"""How a run is done again every night."""

from typing import Annotated, Literal

from pydantic import Field

from rsft_cluster.config.parts import Part

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Command = tuple[Annotated[str, Field(min_length=1)], ...]


class NightlyConfig(Part):
    """A night is one run of its own, named by its date (UTC), that begins from the policy which the last one left."""

    at: str = Field(default="02:00", pattern=r"^([01]\d|2[0-3]):[0-5]\d$")
    """When a night begins, UTC: a zone with summer time would skip a night in spring and have one twice in autumn."""
    weekdays: tuple[Weekday, ...] = Field(default=("mon", "tue", "wed", "thu", "fri", "sat", "sun"), min_length=1)
    """On which days."""
    prompts: Literal["new", "all"] = "new"
    """`new` takes the prompts that no earlier night took, `all` every one."""
    min_prompts: int = Field(default=1, ge=1)
    """Fewer prompts than this make no night: it is skipped, and they wait for the next one."""
    unfinished: Literal["finish", "abandon"] = "finish"
    """What becomes of an earlier night that was cut off: it is finished before the new one, or given up; its prompts
    are then new again."""
    max_hours: float | None = Field(default=None, gt=0)
    """A night that takes longer stops where it is; what becomes of it then, `unfinished` says."""
    keep: int = Field(default=7, ge=1)
    """Number of nights that are kept whole; of older ones, the records and the models of `keep_models` stay."""
    keep_models: int = Field(default=3, ge=1)
    """Policies to roll back to that are kept, beside the current one."""
    notify: Command = ()
    """A command, run at a night's end with its record as JSON on standard input. Addresses that hold a secret belong
    into the environment: RSFT_WEBHOOK_URL gets the record as a POST."""
