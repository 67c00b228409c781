"""Every exception that a caller may want to catch. A message is one sentence with the value and the remedy.

LoopHILError
├── InvalidInput          something a person or a client sent; nothing was changed      -> shown as it is
│   ├── UnknownGroup
│   ├── UnknownVersion
│   └── KeyConflict       the same key with other content
├── ConfigError           settings that cannot work, all of them in one message          -> exit code 78
├── RunError              a run that cannot be opened: locked, other base, newer schema  -> exit code 73
└── LearningError         an update that was thrown away: non-finite, KL cap             -> status.last_error
"""


class LoopHILError(Exception):
    """Base of all errors that LoopHIL raises on purpose."""


class InvalidInput(LoopHILError):
    """What was sent cannot be used. Nothing was changed."""


class UnknownGroup(InvalidInput):
    """No group of this run has that id."""


class UnknownVersion(InvalidInput):
    """No version of this run has that number."""


class KeyConflict(InvalidInput):
    """A key was used before with other content."""


class ConfigError(LoopHILError):
    """Settings that cannot work together or do not exist; the message lists all of them."""


class RunError(LoopHILError):
    """A run that cannot be opened."""


class LearningError(LoopHILError):
    """An update whose result was thrown away; the published weights are untouched."""


def machine_refused(error: OSError, *, where: bool) -> str:
    """A sentence on what the operating system did not do; where: with its paths and addresses, which are not for everybody to read."""
    place = f" ({error.filename})" if where and error.filename else ""
    return f"This machine could not do it: {error.strerror or ' '.join(str(error).split() if where else ()) or type(error).__name__}{place}."
