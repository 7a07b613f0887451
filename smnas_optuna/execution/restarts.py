"""When a worker that has died is restarted, and when it is given up."""

import time
from dataclasses import dataclass

MOST_RESTARTS = 5
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


@dataclass
class Restarts:
    """Counts the deaths of one worker, and makes the pauses before its restarts longer and longer.

    Args:
        worker: Its number.
        deaths: How often it has died since it last finished a trial.
        due: When it starts next, by ``time.monotonic()``.
    """

    worker: int
    deaths: int = 0
    due: float = 0.0

    @property
    def are_over(self) -> bool:
        """Whether it has died so often, and done nothing in between, that it is not started again."""
        return self.deaths > MOST_RESTARTS

    def finished_trial(self) -> None:
        """Forget the deaths, for the worker works."""
        self.deaths = 0

    def died(self, cause: str) -> str:
        """Count a death, and return a line about it."""
        self.deaths += 1
        death = f"worker {self.worker} has died ({cause})"
        if self.are_over:
            return f"{death}, {self.deaths} times without a trial in between, and is not restarted"
        pause = min(_FIRST_PAUSE * 2 ** (self.deaths - 1), _LONGEST_PAUSE)
        self.due = time.monotonic() + pause
        return f"{death}; it is restarted in {pause:.0f} s, restart {self.deaths} of {MOST_RESTARTS}"
