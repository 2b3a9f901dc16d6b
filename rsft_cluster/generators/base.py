"""The contract of a generator, which turns prompts into completions on a worker.

A generator is a class, built once in each sampling actor from the policy and its parameters:

    class Parrot:
        processors = ()

        def __init__(self, policy: PolicySpec, *, times: int = 1) -> None:
            self.times = times

        def generate(self, prompts, decoding, keys):
            for i, prompt in enumerate(prompts):
                for j, _ in enumerate(keys[i]):
                    text = prompt.messages[-1].content * self.times
                    ids = tuple(text.encode())
                    yield Completion(i, j, (0,), ids, text, "stop", 0.0, 0.0)

Candidate j of prompt i is a function of the policy, the prompt, the decoding and `keys[i][j]`, and of nothing
else: not of its neighbours, of earlier calls or of the clock.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rsft_cluster.schemas import Message

P = ParamSpec("P")
G = TypeVar("G")
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as a generator sees it; reference and attributes are not for the policy."""

    prompt_id: str
    messages: Sequence[Message]
    reference: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How next tokens are drawn. Temperature 0 takes the likeliest token."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    batch_size: int = 128
    independent_rows: bool = False
    """True if no bit of a completion may depend on what is decoded with it, in float32 on a CPU; costs a little."""

    def processors(self) -> tuple[str, ...]:
        """Return what shapes the next-token distribution, in the order in which it applies."""
        steps = [("temperature", self.temperature, 1.0), ("top_k", self.top_k, 0)]
        steps += [("top_p", self.top_p, 1.0), ("min_p", self.min_p, 0.0)]
        return tuple(f"{name}={value}" for name, value, neutral in steps if value != neutral)


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion."""

    prompt: int
    """Position of its prompt in the call."""
    index: int
    """Position of its key among the prompt's keys."""
    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    """The drawn tokens, the end-of-sequence token included."""
    text: str
    """`token_ids` decoded, special tokens left out."""
    finish_reason: FinishReason
    logprob: float
    """Summed log-probability of `token_ids` under the proposal, from which they were drawn unless a law was given."""
    target_logprob: float
    """The same under the policy itself: temperature 1, nothing truncated."""
    token_logprobs: Sequence[float] = ()
    """The summands of `logprob`; empty unless a law was given."""
    survival: float = 1.0
    """Share of its probability that earlier rejections had left when it was drawn."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A prompt that cannot be answered, with the reason: it goes to quarantine."""

    prompt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Exhausted:
    """A prompt all of whose completions are rejected by now: its remaining keys stay unanswered."""

    prompt: int


class Generator(Protocol):
    """A generator as a sampling actor holds it."""

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, keys: Sequence[Sequence[int]]
    ) -> Iterator[Completion | Refusal | Exhausted]:
        """Yield one Completion for every key of every prompt, in any order, or one Refusal for a prompt."""
        ...


@runtime_checkable
class Remarking(Protocol):
    """A generator with something to say about how it decodes: shown while a run samples, and kept in the manifest."""

    remarks: Sequence[str]
    """Sentences without a full stop, the same on all workers of a kind."""


class Known(NamedTuple):
    """The tokens after a prefix of which something is known, with their probabilities."""

    tokens: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    """Probabilities under the proposal."""
    left: NDArray[np.float64]
    """Share of the probability of all continuations that is left."""


class Law(Protocol):
    """The distribution of a row after a prefix: the proposal, with mass taken off. It does not change while in use."""

    @property
    def known(self) -> Known:
        """Tokens with a probability of their own."""
        ...

    @property
    def rest(self) -> float:
        """Probability of all other tokens together; the proposal says how it is spread over them."""
        ...

    def after(self, token: int) -> "Law | None":
        """Return the law one token further on; None where nothing was taken off, which is the proposal."""
        ...


class SteerableGenerator(Protocol):
    """A generator that draws by laws.

    What builds it declares so: a class by `steerable = {}`, a function by `@steerable()`. The mapping, or the keywords,
    are parameters that it has to be built with for it.
    """

    def generate(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        keys: Sequence[Sequence[int]],
        laws: Sequence[Law] | None = None,
    ) -> Iterator[Completion | Refusal]:
        """Yield what `Generator.generate` does, drawn by the law of its prompt."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, as in completions."""
        ...


def steerable(**params: object) -> Callable[[Callable[P, G]], Callable[P, G]]:
    """Declare a function that builds a generator: with these parameters, what it builds draws by laws."""

    def declare(factory: Callable[P, G]) -> Callable[P, G]:
        cast("Any", factory).steerable = params
        return factory

    return declare
