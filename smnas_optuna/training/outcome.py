"""Outcome: how a trial ended. Code that decides about a finished trial reads its outcome, never its reason."""

from enum import Enum


class Outcome(str, Enum):
    """How a trial ended; the value is stored as the trial's user attribute ``outcome``.

    The user attribute ``reason`` explains the outcome to people. No code reads it, so its wording may change.
    """

    COMPLETED = "completed"
    """Trained, scored and timed."""
    DUPLICATE = "duplicate"
    """Not trained, because another trial has the same architecture."""
    DOMINATED = "dominated"
    """Not trained, because even its best possible values would not reach the Pareto front."""
    STOPPED = "stopped"
    """Training was stopped early, because the trial would not reach the Pareto front."""
    TOO_LARGE = "too_large"
    """Not trained, because training is estimated to need more memory than is usable."""
    TOO_COSTLY = "too_costly"
    """Not trained, because it costs more than a constraint allows."""
    OUT_OF_MEMORY = "out_of_memory"
    """Training ran out of memory, although the estimate fitted."""
    DIVERGED = "diverged"
    """The loss became infinite or not a number."""
    CRASHED = "crashed"
    """The training process failed, or too many workers died evaluating this architecture."""
    TIMED_OUT = "timed_out"
    """Evaluation took longer than the recipe allows."""
    INTERRUPTED = "interrupted"
    """Ended for a reason that has nothing to do with the architecture; another trial retries it."""
    TOO_LATE = "too_late"
    """Not trained, or not to the end, because it would not have ended within the search's budget."""
    NOT_NEEDED = "not_needed"
    """Not evaluated, because the study had reached its total of trials, or the sampler had nothing left to propose."""

    def __str__(self) -> str:
        return self.value
