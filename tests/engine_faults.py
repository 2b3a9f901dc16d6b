"""Ways in which the engine could get a model wrong, each small: what the probe must find in any type."""

import torch

from rsft_cluster.generators.engine import attention, batches, probe
from rsft_cluster.generators.engine.batches import DecodeBatch
from rsft_cluster.generators.engine.compiled import CompiledBatch

Scoring, causal = attention.Scoring, attention._causal


def wrong_scale(monkeypatch):
    monkeypatch.setattr(attention, "Scoring", lambda scale, softcap: Scoring(scale * 1.05, softcap))


def missing_softcap(monkeypatch):
    monkeypatch.setattr(attention, "Scoring", lambda scale, _softcap: Scoring(scale))


def mask_that_shows_the_next_token(monkeypatch):
    def shifted(num_new, num_all, window, device):
        return torch.roll(causal(num_new, num_all, window, device), -1, 0)

    monkeypatch.setattr(attention, "_causal", shifted)


def mask_that_hides_the_first_token(monkeypatch):
    def hiding(query, key, value, scoring, *, window):
        key, value = (tensor[:, 1:] if tensor.shape[1] > query.shape[1] else tensor for tensor in (key, value))
        return attention.attend_causally(query, key, value, scoring, window=window)

    monkeypatch.setattr(batches, "attend_causally", hiding)


def _change_windows(monkeypatch, change):
    windows = probe._windows
    monkeypatch.setattr(probe, "_windows", lambda model: [change(window) for window in windows(model)])


def window_that_is_left_out(monkeypatch):
    _change_windows(monkeypatch, lambda _window: None)


def window_of_one_token_less(monkeypatch):
    _change_windows(monkeypatch, lambda window: window and window - 1)


def window_where_there_is_none(monkeypatch):
    _change_windows(monkeypatch, lambda window: window or 16)


def positions_shifted_while_decoding(monkeypatch):
    for kind in (DecodeBatch, CompiledBatch):
        original = kind.advance

        def advance(batch, tokens, original=original):
            original(batch, tokens)
            shift = batch.positions if isinstance(batch, DecodeBatch) else batch.token_positions
            shift += 1

        monkeypatch.setattr(kind, "advance", advance)


def positions_of_chunks_that_begin_anew(monkeypatch):
    prepare = batches.PrefillBatch.__init__

    def prepared(batch, chunks, store):
        prepare(batch, chunks, store)
        batch.positions = batch.positions - chunks[0].start

    monkeypatch.setattr(batches.PrefillBatch, "__init__", prepared)


ANYWHERE = (
    wrong_scale,
    mask_that_shows_the_next_token,
    mask_that_hides_the_first_token,
    window_where_there_is_none,
    positions_shifted_while_decoding,
    positions_of_chunks_that_begin_anew,
)
"""Faults of any model; the others need one with windows, or a softcap."""
