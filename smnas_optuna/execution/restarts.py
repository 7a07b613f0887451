"""When a worker that has died is started again, and when no more."""

import time
from dataclasses import dataclass

MOST_RESTARTS = 5
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


@dataclass
class Restarts:
    """Counts the deaths of one worker, and spreads its restarts further and further.

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
        """Take in that the worker works."""
        self.deaths = 0

    def died(self, cause: str) -> str:
        """Take in a death, and return a line that tells it."""
        self.deaths += 1
        told = f"worker {self.worker} has died ({cause})"
        if self.are_over:
            return f"{told}, {self.deaths} times without a trial in between, and is not restarted"
        pause = min(_FIRST_PAUSE * 2 ** (self.deaths - 1), _LONGEST_PAUSE)
        self.due = time.monotonic() + pause
        return f"{told}; it is restarted in {pause:.0f} s, restart {self.deaths} of {MOST_RESTARTS}"
