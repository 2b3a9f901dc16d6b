"""A night as a line of a crontab."""

import shlex

from rsft_cluster.scheduling.order import File, Order, cron_schedule


def crontab(order: Order) -> list[File]:
    """Return a crontab with the line of this run."""
    log = order.folder / f"rsft-{order.run}.log"
    command = f"cd {shlex.quote(str(order.folder))} && {order.command()} --quiet >>{shlex.quote(str(log))} 2>&1"
    return [File(f"rsft-{order.run}.crontab", lines(order, command))]


def lines(order: Order, command: str) -> str:
    """Return a crontab with one command at the nights' time.

    Crons differ in whether they heed CRON_TZ; those that don't read the fields in the machine's zone. So the line comes
    every quarter of an hour, the step of all zones, and begins where the clock in UTC says so. `rsft nightly` finds out
    by itself what there is to do, and a second start of a night is none.
    """
    minute, hour, _, _, days = cron_schedule(order.config.nightly).split()
    quarters = ",".join(str(m) for m in sorted((int(minute) + 15 * n) % 60 for n in range(4)))
    days = "[0-6]" if days == "*" else f"[{days.replace(',', '')}]"
    guard = f"date -u +%w-%H:%M | grep -qx '{days}-{int(hour):02}:{int(minute):02}'"
    # cron ends a command at the first bare percent sign.
    line = f"{guard} && {{ {command}; }}".replace("%", r"\%")
    return (
        f"# rsft {order.run}: {cron_schedule(order.config.nightly)} (UTC). Lines of your own belong above: what comes\n"
        "# below CRON_TZ is read in UTC, where cron knows it.\n"
        "CRON_TZ=UTC\n"
        f"{quarters} * * * * {line}\n"
    )
