"""What can go wrong, as types.

One base class, `RsftError`; each kind also refines the builtin it replaces and carries the exit code
that `rsft` ends with. All of them pickle, so they cross process borders unchanged. A message names the
place, the value found and what would be right: it is printed alone, without a traceback.
"""


class RsftError(Exception):
    """Base of every error that is meant for the user."""

    exit_code = 1


class ConfigError(RsftError, ValueError):
    """The config, the command line or the user's input files are not usable as they stand."""

    exit_code = 2


class PluginError(ConfigError):
    """A plug-in cannot be found, or its parameters do not fit its signature."""


class SchemaError(RsftError, TypeError):
    """A table does not have the schema that its stage promises."""


class StageError(RsftError, RuntimeError):
    """A stage failed in a way that running it again does not mend by itself."""


class OutOfTimeError(StageError):
    """A limit of time was reached. Started again, the work goes on where it stopped."""


class UnitFailedError(StageError):
    """A generator raised at a unit. Its neighbours may do better: the unit is tried again, then halved."""


class NothingAcceptedError(StageError):
    """No candidate was accepted: there is nothing to learn from, the policy stays as it was."""

    exit_code = 65


class DivergedError(StageError):
    """Training produced a non-finite or runaway loss: its result is thrown away."""

    exit_code = 66


class StoreError(RsftError, OSError):
    """The store cannot be read or written, or holds something that fails its checksum."""

    exit_code = 74

    def __str__(self) -> str:
        """Return the message as given; OSError would render an errno tuple."""
        return " ".join(str(a) for a in self.args)


class AlreadyRunningError(RsftError, RuntimeError):
    """Another process holds the lease of this run."""

    exit_code = 75


class AuditError(RsftError, RuntimeError):
    """An audit trail does not hold: something was changed, lost, or decided otherwise than it says."""
