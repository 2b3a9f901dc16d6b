"""What a check found: lines of its report, and faults; all of them, not the first alone."""

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
    """What was found so far, and what is wrong."""

    config: RunConfig
    findings: list[Finding] = field(default_factory=list)
    faults: list[RsftError] = field(default_factory=list)

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Note a fault that the block meets, with the key that it is about."""
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


def _named(key: str, said: str) -> str:
    """Return a message that begins with its key. Readers name `prompts` whichever of the two sections they read."""
    part = key.rpartition(".")[2]
    if said.startswith((f"{key}:", f"{key}.")):
        return said
    return key + said.removeprefix(part) if said.startswith(f"{part}.") else f"{key}: {said}"
