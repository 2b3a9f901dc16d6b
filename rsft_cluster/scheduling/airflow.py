"""A night as an Airflow DAG."""

from rsft_cluster.errors import AlreadyRunningError
from rsft_cluster.scheduling.order import File, Order, cron_schedule

DAG = '''\
"""rsft {run}: one run a night, UTC. Airflow only starts it; the run resumes by itself, so a retry goes on."""

from datetime import datetime, timedelta, timezone

from airflow import DAG

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # Airflow 2
    from airflow.operators.bash import BashOperator

with DAG(
    dag_id={name!r},
    schedule={schedule!r},
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    tags=["rsft"],
):
    BashOperator(
        task_id="night",
        # Started by hand it has no date; the night whose time was last is meant then.
        bash_command={command!r} + "{{% if data_interval_end %}} --date {{{{ data_interval_end | ds }}}}{{% endif %}}",
        cwd={folder!r},
        append_env=True,
        skip_on_exit_code={running},
        retries=2,
        retry_delay=timedelta(minutes=5),
        execution_timeout={timeout},
    )
'''


def dag(order: Order) -> list[File]:
    """Return the DAG's file."""
    hours = order.config.nightly.max_hours
    text = DAG.format(
        run=order.run,
        name=f"rsft-{order.run}",
        schedule=cron_schedule(order.config.nightly),
        command=_literal(f"{order.command()} --quiet"),
        folder=str(order.folder),
        running=AlreadyRunningError.exit_code,
        timeout="None" if hours is None else f"timedelta(hours={hours + 1:g})",
    )
    return [File(f"rsft_{order.run.replace('-', '_').replace('.', '_')}.py", text)]


def _literal(command: str) -> str:
    """Return a command that Jinja, which Airflow sends it through, leaves as it is."""
    for mark in ("{{", "{%", "{#"):
        command = command.replace(mark, "{{ '" + mark + "' }}")
    return command
