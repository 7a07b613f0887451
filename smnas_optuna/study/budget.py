"""Budget: the wall time that a search may take, over all its commands, workers and restarts.

Each command records in the studies of its search when it ran. What a search has taken is the length of all these times
together, so commands that run side by side count once, and the time in which nothing ran does not count.
"""

import logging
import re
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import sqlalchemy.exc
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

_logger = logging.getLogger(__name__)

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")

# System attributes of a study, which Optuna's dashboard does not show.
_SESSION = "smnas:session:"
_BUDGET = "smnas:budget"
# Seconds between two records: so much may be missing after a command was killed.
_RECORD_SECONDS = 5.0
# A search may end later than its budget by this share of it, so that a detector whose training is nearly over, or is
# predicted a little too late, is not lost.
_GRACE = 0.03


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``90m``, ``6h``, ``1h30m`` or ``2d``.

    Raises:
        ValueError: It is not such a duration, or not longer than 0.
    """
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not _DURATION.fullmatch(text) or seconds <= 0:
        raise ValueError(f"found {text!r}, expected a duration such as 90m, 6h or 2d")
    return seconds


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units, such as ``1h 30m``, ``14m 5s`` or ``40s``."""
    rest = round(max(0.0, seconds))
    parts: list[str] = []
    for unit in ("d", "h", "m", "s"):
        number, rest = divmod(rest, _UNITS[unit])
        if number or (unit == "s" and not parts):
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2])


@dataclass(frozen=True)
class Deadline:
    """When a stage of a search has to end, and the search.

    Args:
        at: When the stage has to end, in seconds since the epoch, as ``time.time()`` returns it.
        end: The end of the budget, which is later if other stages follow.
        budget: The whole budget in seconds.
        kept: Part of the budget that is kept for what follows all stages.
    """

    at: float
    end: float
    budget: float
    kept: float = 0.0

    @classmethod
    def of_stage(cls, budget: float, spent: float, stages: int = 1, kept: float = 0.0) -> "Deadline":
        """Return the deadline of the first of some stages, which all get the same part of what is left of a budget.

        Args:
            budget: The whole budget in seconds.
            spent: Seconds of it that are spent by now.
            stages: Number of stages to come.
            kept: Part of the budget that is kept for what follows them.
        """
        now, left = time.time(), budget - spent
        return cls(now + (left - kept * budget) / stages, now + left, budget, kept)

    @property
    def left(self) -> float:
        """Seconds until the stage has to end; negative after it."""
        return self.at - time.time()

    def budget_for(self, seconds: float) -> float:
        """Return the budget in seconds with which something could end in time that takes so many seconds from now."""
        return self.budget + max(0.0, seconds - self.left) / (1 - self.kept)

    @property
    def grace(self) -> float:
        """Seconds by which a trial may end later."""
        return _GRACE * self.budget

    def __str__(self) -> str:
        spent = self.budget - (self.end - time.time())
        return f"{duration_text(spent)} of {duration_text(self.budget)}"

    def is_missed_by(self, seconds: float) -> bool:
        """Return whether something that takes so many seconds from now on would end too late."""
        return seconds > self.left + self.grace


class RunningTime:
    """A context manager that records in some studies that a command runs; in those that do not exist yet, later.

    Args:
        storage: Where the studies are.
        names: Names of the studies.
        started: When the command started, in seconds since the epoch.
        budget: The budget in seconds that the studies are to show; None to keep what they show.
    """

    def __init__(self, storage: RDBStorage, names: Iterable[str], started: float, budget: float | None) -> None:
        self._storage = storage
        self._names = tuple(names)
        self._started = started
        self._budget = budget
        self._key = f"{_SESSION}{secrets.token_hex(4)}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_recording, name="running time", daemon=True)

    def __enter__(self) -> "RunningTime":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _keep_recording(self) -> None:
        while not self._ended.wait(_RECORD_SECONDS):
            self._record()
        self._record()
        # Sessions are per thread; otherwise the connection of this thread would stay open.
        self._storage.remove_session()

    def _record(self) -> None:
        try:
            for study in _ids(self._storage, self._names).values():
                self._storage.set_study_system_attr(study, self._key, [self._started, time.time()])
                if self._budget is not None:
                    self._storage.set_study_system_attr(study, _BUDGET, self._budget)
        except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            _logger.debug("the running time could not be recorded: %s", error)


def seconds_spent(storage: RDBStorage, names: Iterable[str], since: float | None = None) -> float:
    """Return how long commands have run that searched any of these studies.

    Args:
        storage: Where the studies are.
        names: Names of the studies; those that do not exist have taken no time.
        since: When the calling command started to search them, in seconds since the epoch; None if it does not.
    """
    sessions = sorted(
        [
            *(
                tuple(value)
                for study in _ids(storage, names).values()
                for key, value in storage.get_study_system_attrs(study).items()
                if key.startswith(_SESSION)
            ),
            *([] if since is None else [(since, time.time())]),
        ]
    )
    spent, reached = 0.0, -float("inf")
    for start, end in sessions:
        spent += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return spent


def recorded_budget(storage: RDBStorage, names: Iterable[str]) -> float | None:
    """Return the budget in seconds that a search was last run with; None if it had none."""
    budgets = [storage.get_study_system_attrs(study).get(_BUDGET) for study in _ids(storage, names).values()]
    return max((float(budget) for budget in budgets if budget is not None), default=None)


def _ids(storage: RDBStorage, names: Iterable[str]) -> dict[str, int]:
    """Return the ids of those studies that exist, by name."""
    found = {}
    for name in names:
        try:
            found[name] = storage.get_study_id_from_name(name)
        except KeyError:
            continue
    return found
