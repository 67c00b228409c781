"""What went wrong and what may help, in words: jobs that failed until the same kind of job succeeds, and an alarm until somebody answers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loophil.errors import ConfigError, LearningError
from loophil.jobs import DRAWING, LOADING, UPDATING
from loophil.types import GO_ON, RETRY


class Troubles:
    """Of one opening of a run. A job is known by its name, its kind is the first word of it."""

    def __init__(self, recovered: Sequence[str]) -> None:
        """recovered: what opening the run found damaged; an update that succeeds clears it."""
        self._failed: dict[str, tuple[str, tuple[str, ...]]] = {}
        if recovered:
            self._failed[_kind(UPDATING)] = "; ".join(recovered), ()

    def failed(self, what: str, error: Exception) -> None:
        """A job failed. torch's own class is known by its name: this module does without torch."""
        again = (RETRY,) if what in (LOADING, DRAWING, UPDATING) else ()
        if type(error).__name__ == "OutOfMemoryError":
            said = f"The GPU ran out of memory while {what}. Nothing is lost. A smaller --draw.size or --memory.offload group needs less.", again
        else:
            sentence = str(error) or type(error).__name__
            said = sentence if isinstance(error, LearningError | ConfigError) else f"{what.capitalize()} failed: {sentence}", again
        self._failed.pop(_kind(what), None)  # the newest is the last
        self._failed[_kind(what)] = said

    def over(self, what: str) -> None:
        """A job of this kind succeeded."""
        self._failed.pop(_kind(what), None)

    def all_over(self) -> None:
        """An update succeeded: whatever failed before it is past."""
        self._failed.clear()

    def newest(self, alarm: str) -> dict[str, Any]:
        """What the status says: the newest failure, else the alarm that has stopped automatic rounds, "" = none has."""
        standing = [(alarm, (GO_ON,))] if alarm else []
        sentence, remedies = next(reversed([*standing, *self._failed.values()]), (None, ()))
        return {"last_error": sentence, "remedies": remedies}


def _kind(what: str) -> str:
    return what.split()[0]
