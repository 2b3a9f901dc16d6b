"""An S3 server to test against: moto's, or any other that the environment names.

    RSFT_S3_ENDPOINT=http://127.0.0.1:8333 RSFT_S3_BUCKET=rsft AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... \\
        python -m pytest tests/test_store_s3.py tests/test_store_faults.py

The bucket is made where it is missing; what the tests leave there lies under names of their own.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from uuid import uuid4

import boto3
import pytest

ACCESS_KEY, SECRET_KEY = "rsft-test-key", "canary-5e11ed-secret-of-the-store"


@dataclass(frozen=True)
class Bucket:
    """A bucket on a server."""

    endpoint: str
    name: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def place(self) -> str:
        """A URI in the bucket that nobody used."""
        return f"{self.uri}/test-{uuid4().hex[:12]}"

    def environment(self, endpoint: str = "") -> dict[str, str]:
        """What a process needs to reach it, through another endpoint if one is given."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint, "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }  # fmt: skip

    def client(self):
        """A client that goes past whatever proxy the environment names."""
        return _client(self.endpoint, self.access_key, self.secret_key)


@lru_cache
def _client(endpoint: str, access_key: str, secret_key: str):
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
    )  # fmt: skip


@contextmanager
def bucket_of_server() -> Iterator[Bucket]:
    """A bucket on the server that the environment names, or else on one of moto's in a process of its own."""
    if endpoint := os.environ.get("RSFT_S3_ENDPOINT"):
        found = Bucket(
            endpoint, os.environ.get("RSFT_S3_BUCKET", "rsft"), os.environ["AWS_ACCESS_KEY_ID"],
            os.environ["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        with suppress(found.client().exceptions.BucketAlreadyOwnedByYou, found.client().exceptions.BucketAlreadyExists):
            found.client().create_bucket(Bucket=found.name)
        yield found
        return
    with moto() as endpoint:
        found = Bucket(endpoint, "rsft")
        found.client().create_bucket(Bucket=found.name)
        yield found


SERVER = """
from moto.server import ThreadedMotoServer
import sys, threading
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def moto() -> Iterator[str]:
    """Yield the endpoint of a server that lasts as long as the block, in a process of its own."""
    pytest.importorskip("moto.server")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
        _wait(endpoint)
        yield endpoint
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


def _wait(endpoint: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(endpoint, timeout=10).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
