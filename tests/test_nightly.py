"""Nights: their dates, what they take, what is kept of them, whom they tell; whole ones are in ray/test_nights.py."""

import json
import subprocess
import sys
import threading
import time
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from factories import write_jsonl
from projects import settings, sums, write_fake_model, write_project

from rsft_cluster.config import NightlyConfig, RunConfig
from rsft_cluster.config.file import load_config
from rsft_cluster.errors import AlreadyRunningError, ConfigError, OutOfTimeError
from rsft_cluster.nightly.dates import logical_date, missed
from rsft_cluster.nightly.intake import ingest, mark_seen, stored_prompts
from rsft_cluster.nightly.limits import at_most
from rsft_cluster.nightly.night import nightly
from rsft_cluster.nightly.notices import WEBHOOK, notify
from rsft_cluster.nightly.records import NightRecord, record_of, records
from rsft_cluster.nightly.retention import prune
from rsft_cluster.prompts import read_prompts
from rsft_cluster.records import PolicyRef
from rsft_cluster.report.reporter import Reporter
from rsft_cluster.rounds.loop import opened
from rsft_cluster.runs.lease import hold
from rsft_cluster.runs.promotions import PromotionLog
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout

QUIET = Reporter(quiet=True)
SPRING, AUTUMN = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 10, 10, tzinfo=UTC)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a config of nights that take at least 1000 prompts, so that none of them needs a cluster."""
    monkeypatch.chdir(tmp_path)
    write_fake_model(tmp_path / "model")
    return load_config(write_project(tmp_path), ["nightly.min_prompts=1000"])


@pytest.fixture
def store(project):
    return Store(f"{project.store}/{project.run}")


@pytest.mark.parametrize(
    ("at", "now", "expected"),
    [
        ("02:00", "2026-11-26T02:00:01", "2026-11-26"),
        ("02:00", "2026-11-26T14:00:00", "2026-11-26"),
        ("02:00", "2026-11-27T00:59:59", "2026-11-26"),
        ("02:00", "2026-11-26T01:58:00", "2026-11-26"),
        ("23:30", "2026-11-26T23:30:00", "2026-11-26"),
        ("23:30", "2026-11-27T00:10:00", "2026-11-26"),
        ("00:15", "2026-11-25T23:40:00", "2026-11-26"),
        ("00:15", "2026-11-25T23:00:00", "2026-11-25"),
    ],
)
def test_a_start_belongs_to_the_night_whose_time_it_is_late_or_a_little_early_for(at, now, expected):
    assert str(logical_date(NightlyConfig(at=at), datetime.fromisoformat(now).replace(tzinfo=UTC))) == expected


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("first", [SPRING, AUTUMN])
@pytest.mark.parametrize("at", ["00:30", "02:30", "06:30", "23:30"])
def test_forty_nights_over_a_change_of_the_clock_have_forty_dates(zone, first, at):
    hour, minute = map(int, at.split(":"))
    starts = [first + timedelta(days=n, hours=hour, minutes=minute) for n in range(40)]
    there = [start.astimezone(ZoneInfo(zone)) for start in starts]
    assert len({moment.utcoffset() for moment in there}) == 2
    dates = [logical_date(NightlyConfig(at=at), moment) for moment in there]
    assert dates == [start.date() for start in starts]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("first", [SPRING, AUTUMN])
def test_forty_nights_are_forty_records_though_each_is_started_three_times(project, store, zone, first, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for n in range(40):
            begins = first + timedelta(days=n, hours=2)
            for late in (timedelta(0), timedelta(minutes=20), timedelta(hours=9)):
                nightly(project, logical_date(project.nightly, (begins + late).astimezone()), QUIET)
    finally:
        monkeypatch.undo()
        time.tzset()
    found = records(store)
    assert [r.date for r in found] == [str((first + timedelta(days=n)).date()) for n in range(40)]
    assert {r.outcome for r in found} == {"nothing_new"}
    assert not any(r.missed for r in found)


def test_missed_nights_are_those_on_which_one_was_due():
    config = NightlyConfig(weekdays=("mon", "tue", "wed", "thu", "fri"))
    friday, tuesday = date(2026, 11, 20), date(2026, 11, 24)
    assert missed(config, friday, tuesday) == (date(2026, 11, 23),)
    assert missed(NightlyConfig(), friday, tuesday) == tuple(date(2026, 11, day) for day in (21, 22, 23))
    assert missed(NightlyConfig(), None, tuesday) == ()


def test_a_night_with_nothing_new_says_so_and_leaves_its_prompts_to_the_next(project, store):
    first = nightly(project, date(2026, 11, 20), QUIET)
    assert (first.outcome, first.policy) == ("nothing_new", "base")
    assert first.reason == "14 prompts that no earlier night took, nightly.min_prompts is 1000; 0 were taken before"
    assert nightly(project, date(2026, 11, 23), QUIET).missed == ("2026-11-21", "2026-11-22")
    assert not store.folders("nights")
    assert not store.files("seen")


def test_a_night_that_is_over_is_left_as_it_is(project, store):
    nightly(project, date(2026, 11, 20), QUIET)
    before = {path: store.read(path) for path in store.files("nights")}
    again = nightly(project, date(2026, 11, 20), QUIET)
    assert again == record_of(store, "2026-11-20")
    assert before == {path: store.read(path) for path in store.files("nights")}


def test_two_nights_at_once_are_refused(project, store):
    with hold(store), pytest.raises(AlreadyRunningError):
        nightly(project, date(2026, 11, 20), QUIET)


def test_nights_do_not_go_into_the_folder_of_a_plain_run(project, store):
    store.write("rounds/0001/plan.json", b"{}")
    with pytest.raises(ConfigError, match="holds a run of `rsft run`"):
        nightly(project, date(2026, 11, 20), QUIET)


def test_a_plain_run_does_not_go_into_the_folder_of_nights(project):
    nightly(project, date(2026, 11, 20), QUIET)
    with pytest.raises(ConfigError, match="holds nights of `rsft nightly`"), opened(project):
        pass


def test_nights_do_not_change_what_they_started_from(project, tmp_path):
    nightly(project, date(2026, 11, 20), QUIET)
    other = project.model_copy(update={"policy": project.policy.model_copy(update={"model": str(tmp_path / "x")})})
    with pytest.raises(
        ConfigError, match=r"policy\.model: .*x, but the nights in .* started from .*model; put that back"
    ):
        nightly(other, date(2026, 11, 21), QUIET)


def ids(taken, config, store):
    batches = read_prompts(stored_prompts(config.prompts, store, taken), on_bad=pytest.fail)
    return [prompt for batch in batches for prompt in batch.column("prompt_id").to_pylist()]


def test_a_night_takes_what_no_earlier_one_took_and_has_it_though_the_files_change(project, store, tmp_path):
    first = ingest(project, RunLayout(store).night("2026-11-20"))
    assert (first.num_prompts, first.num_seen) == (14, 0)
    mark_seen(store, "2026-11-20", first)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in sums(5, 100))
    second = ingest(project, RunLayout(store).night("2026-11-21"))
    assert (second.num_prompts, second.num_seen) == (5, 14)
    write_jsonl(tmp_path / "prompts.jsonl", sums(1))
    assert len(set(ids(first, project, store)) | set(ids(second, project, store))) == 19
    mark_seen(store, "2026-11-21", second)
    assert ingest(project, RunLayout(store).night("2026-11-22")).num_prompts == 0


def test_a_limit_counts_new_prompts(project, store):
    limited = project.model_copy(update={"prompts": project.prompts.model_copy(update={"limit": 6})})
    sizes = []
    for day in ("2026-11-20", "2026-11-21", "2026-11-22"):
        taken = ingest(limited, RunLayout(store).night(day))
        mark_seen(store, day, taken)
        sizes.append(taken.num_prompts)
    assert sizes == [6, 6, 2]


def test_all_prompts_are_taken_every_night_where_that_is_asked_for(project, store):
    everything = project.model_copy(update={"nightly": NightlyConfig(prompts="all")})
    for day in ("2026-11-20", "2026-11-21"):
        taken = ingest(everything, RunLayout(store).night(day))
        mark_seen(store, day, taken)
        assert taken.num_prompts == 14


def test_other_prompts_make_another_fingerprint(project, store):
    taken = ingest(project, RunLayout(store).night("2026-11-20"))
    assert stored_prompts(project.prompts, store, taken).source.params["content"] == taken.content
    limited = project.model_copy(update={"prompts": project.prompts.model_copy(update={"limit": 6})})
    assert taken.content != ingest(limited, RunLayout(store).night("2026-11-21")).content


def night_of(store, day, *, promoted):
    """A night's folder as it is left behind, and its record and promotion."""
    for path in ("candidates/a.parquet", "scores/a.parquet", "manifest.json", "model/model.safetensors"):
        store.write(f"nights/{day}/rounds/0001/{path}", b"x")
    store.write(f"nights/{day}/taken.parquet", b"x")
    record = NightRecord(
        date=day, outcome="promoted" if promoted else "kept", reason="", policy=day, ended_at=f"{day}T03:00:00"
    )
    store.write(f"nights/{day}.json", record.to_json())
    if promoted:
        policy = PolicyRef(name=day, uri=store.uri_of(f"nights/{day}/rounds/0001/model"), digest="d")
        with hold(store) as lease:
            PromotionLog(store).append(lease, action="promote", policy=policy, reason="", round_number=1)


def test_of_old_nights_the_records_stay_and_the_models_that_are_current_or_to_be_rolled_back_to(tmp_path):
    store = Store(str(tmp_path))
    days = [f"2026-11-{day:02}" for day in range(1, 11)]
    for day in days:
        night_of(store, day, promoted=day < "2026-11-06")
    prune(store, NightlyConfig(keep=3, keep_models=2), records(store), PromotionLog(store).entries())
    left = {day: store.files(f"nights/{day}", recursive=True) for day in days}
    assert [day for day in days if len(left[day]) == 5] == ["2026-11-08", "2026-11-09", "2026-11-10"]
    for day in ("2026-11-03", "2026-11-04", "2026-11-05"):  # the current one, and two to roll back to
        assert left[day] == [f"nights/{day}/rounds/0001/model/model.safetensors"]
    assert all(left[day] == [] for day in ("2026-11-01", "2026-11-02", "2026-11-06", "2026-11-07"))
    assert len(records(store)) == 10


def test_nights_with_nothing_new_push_no_other_out(tmp_path):
    store = Store(str(tmp_path))
    night_of(store, "2026-11-01", promoted=True)
    night_of(store, "2026-11-02", promoted=False)
    for day in range(3, 20):
        record = NightRecord(date=f"2026-11-{day:02}", outcome="nothing_new", reason="", policy="base", ended_at="")
        store.write(f"nights/{record.date}.json", record.to_json())
    prune(store, NightlyConfig(keep=2), records(store), PromotionLog(store).entries())
    assert all(len(store.files(f"nights/{day}", recursive=True)) == 5 for day in ("2026-11-01", "2026-11-02"))


def test_a_model_that_a_rollback_made_current_is_kept(tmp_path):
    store = Store(str(tmp_path))
    days = [f"2026-11-{day:02}" for day in range(1, 8)]
    for day in days:
        night_of(store, day, promoted=True)
    with hold(store) as lease:
        PromotionLog(store).rollback(lease, to="2026-11-01")
    prune(store, NightlyConfig(keep=1, keep_models=1), records(store), PromotionLog(store).entries())
    kept = [day for day in days if store.exists(f"nights/{day}/rounds/0001/model/model.safetensors")]
    assert kept == ["2026-11-01", "2026-11-07"]


class Hook(HTTPServer):
    """A web hook on this machine that keeps what it is told."""

    def __init__(self, status=200):
        self.told, self.status = [], status
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/hook?secret=canary"


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_command_and_the_web_hook_get_the_record(project, tmp_path, monkeypatch):
    hook = Hook()
    monkeypatch.setenv(WEBHOOK, hook.url)
    command = (sys.executable, "-c", f"import sys; open({str(tmp_path / 'told')!r}, 'w').write(sys.stdin.read())")
    config = project.model_copy(update={"nightly": project.nightly.model_copy(update={"notify": command})})
    record = nightly(config, date(2026, 11, 20), QUIET)
    assert hook.told == [record.model_dump(mode="json")]
    assert NightRecord.from_json((tmp_path / "told").read_bytes()) == record


def test_whoever_is_not_reached_is_named_without_the_secret_and_the_night_stands(project, store, monkeypatch, capsys):
    hook = Hook(status=500)
    monkeypatch.setenv(WEBHOOK, hook.url)
    broken = NightlyConfig(notify=(sys.executable, "-c", "raise SystemExit('no such room')"))
    notify(broken, {"date": "x"}, Reporter())
    said = capsys.readouterr().err
    assert "exit code 1: no such room" in said
    assert f"{WEBHOOK}: the web hook was not reached (HTTP status 500)" in said
    assert "canary" not in said
    assert nightly(project, date(2026, 11, 20), QUIET).outcome == "nothing_new"


def test_a_night_that_fails_tells_so(project, monkeypatch):
    hook = Hook()
    monkeypatch.setenv(WEBHOOK, hook.url)
    Path("prompts.jsonl").unlink()
    with pytest.raises(ConfigError):
        nightly(project, date(2026, 11, 20), QUIET)
    assert [(told["date"], told["outcome"]) for told in hook.told] == [("2026-11-20", "failed")]


def test_a_night_ends_when_its_time_is_over():
    start = time.monotonic()
    with pytest.raises(OutOfTimeError, match=r"over 5\.5\d*e-05 hours"), at_most(0.2 / 3600):
        time.sleep(20)
    assert time.monotonic() - start < 5
    with at_most(0.2 / 3600):
        pass
    time.sleep(0.3)  # and nobody is interrupted afterwards


def test_the_command_line_tells_the_outcome_and_refuses_what_is_no_date(project, tmp_path):
    command = [sys.executable, "-m", "rsft_cluster", "nightly", "run.yaml", "--set", "nightly.min_prompts=1000"]
    wrong = subprocess.run([*command, "--date", "tomorrow"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "error: --date tomorrow: expected a date like 2026-11-26\n")
    done = subprocess.run([*command, "--date", "2026-11-20", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "nothing_new"
    status = subprocess.run([*command[:3], "status", "runs/sums"], capture_output=True, text=True)
    assert "2026-11-20" in status.stdout
    assert "nothing new" in status.stdout


def test_a_time_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"nightly\.at"):
        RunConfig.model_validate(settings(nightly__at="24:10"))
