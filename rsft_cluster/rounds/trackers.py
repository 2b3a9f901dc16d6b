"""Trackers beside the terminal: each hears what the run's listener hears, and none can disturb the run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from rsft_cluster.config import RunConfig
from rsft_cluster.plugins import bind
from rsft_cluster.progress import Listener, Progress


def with_trackers(config: RunConfig, listener: Listener) -> Listener:
    """Return a listener that passes everything on to `listener` and to the config's trackers.

    Raises PluginError where a tracker cannot be found or its parameters do not fit.
    """
    if not config.trackers:
        return listener
    bound = {plugin.use: bind(plugin, "trackers", num_leading=1) for plugin in config.trackers}
    return _Tracked(listener, {use: tracker(config) for use, tracker in bound.items()})


class _Tracked:
    """A listener with trackers beside it; a tracker that raises is named once and left out from there on."""

    def __init__(self, listener: Listener, trackers: dict[str, Listener]) -> None:
        self._listener = listener
        self._trackers = trackers

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Enter and leave the stage of every listener."""
        entered: dict[str, AbstractContextManager[None]] = {}

        def enter(use: str, tracker: Listener) -> None:
            stage = tracker.stage(title)
            stage.__enter__()
            entered[use] = stage

        self._each(enter)
        try:
            with self._listener.stage(title):
                yield
        finally:
            self._each(lambda use, _: entered[use].__exit__(None, None, None) if use in entered else None)

    def collecting(self, progress: Progress) -> None:
        """Pass on how far a collection is."""
        self._listener.collecting(progress)
        self._each(lambda _, tracker: tracker.collecting(progress))

    def training(self, step: int, num_steps: int, loss: float) -> None:
        """Pass on how far a training is."""
        self._listener.training(step, num_steps, loss)
        self._each(lambda _, tracker: tracker.training(step, num_steps, loss))

    def decided(self, round_number: int, figures: Mapping[str, object]) -> None:
        """Pass on the figures of a round."""
        self._listener.decided(round_number, figures)
        self._each(lambda _, tracker: tracker.decided(round_number, figures))

    def note(self, text: str) -> None:
        """Pass on a line for a person."""
        self._listener.note(text)
        self._each(lambda _, tracker: tracker.note(text))

    def _each(self, call: Callable[[str, Listener], object]) -> None:
        for use, tracker in list(self._trackers.items()):
            try:
                call(use, tracker)
            except Exception as error:
                del self._trackers[use]
                self._listener.note(f"warning: tracker {use} is left out from here on: {type(error).__name__}: {error}")
