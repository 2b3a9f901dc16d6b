"""rsft example: one run a night, UTC. Airflow only starts it; the run resumes by itself, so a retry goes on."""

from datetime import datetime, timedelta, timezone

from airflow import DAG

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # Airflow 2
    from airflow.operators.bash import BashOperator

with DAG(
    dag_id='rsft-example',
    schedule='30 1 * * *',
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    tags=["rsft"],
):
    BashOperator(
        task_id="night",
        # Started by hand it has no date; the night whose time was last is meant then.
        bash_command='/srv/rsft/.venv/bin/python -m rsft_cluster nightly /srv/rsft/night.yaml --quiet' + "{% if data_interval_end %} --date {{ data_interval_end | ds }}{% endif %}",
        cwd='/srv/rsft',
        append_env=True,
        skip_on_exit_code=75,
        retries=2,
        retry_delay=timedelta(minutes=5),
        execution_timeout=timedelta(hours=9),
    )
