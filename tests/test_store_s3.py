"""The same store on an S3 server over HTTP: put-if-absent, tables, listings."""

import boto3
import pytest
from moto.server import ThreadedMotoServer
from test_store import prompts

from rsft_cluster.schemas import PROMPT
from rsft_cluster.store import Store, localise, upload_folder


@pytest.fixture(scope="module")
def bucket():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="rsft")
        yield "s3://rsft"
    server.stop()


def test_put_if_absent_holds_on_s3(bucket):
    store = Store(f"{bucket}/probe")
    store.probe()
    assert store.create("lease/1.json", b"mine")
    assert not store.create("lease/1.json", b"yours")
    assert store.files("lease") == ["lease/1.json"]


def test_tables_and_row_groups_round_trip_on_s3(bucket):
    store = Store(f"{bucket}/tables")
    ref = store.write_table("a/t.parquet", prompts(9), PROMPT)
    assert store.read_table(ref).num_rows == 9
    assert store.size("a/t.parquet") == ref.num_bytes
    store.write_batches("p.parquet", prompts(9).to_batches(), PROMPT, rows=4)
    assert store.read_row_group("p.parquet", 2).num_rows == 1


def test_a_model_folder_on_s3_is_fetched_once(bucket, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    upload_folder(tmp_path, f"{bucket}/model")
    first = localise(f"{bucket}/model")
    assert (first / "config.json").read_text() == "{}"
    assert localise(f"{bucket}/model") == first
