"""The findings of a check: lines of its report, and all faults, not only the first."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rsft_cluster.config import RunConfig
from rsft_cluster.errors import ConfigError, RsftError


@dataclass(frozen=True)
class Finding:
    """One line of the check's report."""

    about: str
    says: str
    warns: bool = False


@dataclass
class Findings:
    """The lines and the faults so far."""

    config: RunConfig
    findings: list[Finding] = field(default_factory=list)
    faults: list[RsftError] = field(default_factory=list)

    @contextmanager
    def faults_of(self, key: str) -> Iterator[None]:
        """Collect the fault that the block raises, under the key that it is about."""
        try:
            yield
        except RsftError as error:
            self.faults.append(type(error)(_named(key, str(error))))

    def say(self, about: str, says: str, *, warns: bool = False) -> None:
        """Add a line to the report."""
        self.findings.append(Finding(about, says, warns))

    def conclude(self) -> list[Finding]:
        """Return the findings; raises the fault, or one error with all of them."""
        if len(self.faults) > 1:
            raise ConfigError("\n".join(map(str, self.faults)))
        if self.faults:
            raise self.faults[0]
        return self.findings


def _named(key: str, message: str) -> str:
    """Return a message that begins with its key. Readers name `prompts` whichever of the two sections they read."""
    part = key.rpartition(".")[2]
    if message.startswith((f"{key}:", f"{key}.")):
        return message
    return key + message.removeprefix(part) if message.startswith(f"{part}.") else f"{key}: {message}"
