"""The held-out prompts: a policy must not be trained on what it is evaluated on."""

from collections.abc import Iterable

import pyarrow as pa

from rsft_cluster.schemas import message_digests


class HeldOut:
    """The messages of the held-out prompts, whatever their references and attributes.

    The last message of a prompt is compared first, by its hash in this process: ten million digests take ten seconds,
    and hardly any prompt needs one.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch] = ()) -> None:
        self._endings: set[int] = set()
        self._digests: set[str] = set()
        for batch in batches:
            messages = batch.column("messages")
            self._endings.update(map(hash, _endings(messages)))
            self._digests.update(message_digests(messages))

    def first_of(self, messages: pa.ListArray) -> int | None:
        """Return the index of the first held-out prompt in a column of messages; None where there is none."""
        if not self._digests:
            return None
        candidates = [i for i, text in enumerate(_endings(messages)) if hash(text) in self._endings]
        digests = message_digests(messages.take(pa.array(candidates, pa.int64())))
        return next((i for i, digest in zip(candidates, digests, strict=True) if digest in self._digests), None)


def _endings(messages: pa.ListArray) -> list[str | None]:
    """Return the text of each prompt's last message; None for a prompt without any."""
    ends = messages.offsets.to_numpy()
    last = pa.array(ends[1:] - 1, mask=ends[1:] == ends[:-1])
    return messages.values.field("content").take(last).to_pylist()
