"""Which night it is. Dates are UTC throughout: there every day has each time of day once."""

from datetime import UTC, date, datetime, time, timedelta

from rsft_cluster.config import NightlyConfig

GRACE = timedelta(hours=1)
"""A start this much before its time belongs to the night that it is early for: clocks differ."""
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def logical_date(config: NightlyConfig, now: datetime | None = None) -> date:
    """Return the date of the night that a start at `now` is for: that of the time it was to begin, however late."""
    moment = (now or datetime.now(UTC)).astimezone(UTC) + GRACE
    begins = time.fromisoformat(config.at)
    return moment.date() if moment.time() >= begins else moment.date() - timedelta(days=1)


def missed(config: NightlyConfig, last: date | None, tonight: date) -> tuple[date, ...]:
    """Return the dates between two nights on which there was to be one."""
    if last is None:
        return ()
    days = (last + timedelta(days=n) for n in range(1, (tonight - last).days))
    return tuple(day for day in days if WEEKDAYS[day.weekday()] in config.weekdays)
