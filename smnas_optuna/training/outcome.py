"""Outcome: what became of a trial, as data. Everything that is decided about a finished trial is decided by it."""

from enum import Enum


class Outcome(str, Enum):
    """What became of a trial; its value is the trial's user attribute ``outcome``.

    ``reason`` beside it is for people only: no code reads it, so a sentence can be reworded at any time.
    """

    COMPLETED = "completed"
    """Trained, scored and timed."""
    DUPLICATE = "duplicate"
    """Not trained, since another trial has the architecture."""
    DOMINATED = "dominated"
    """Not trained, since even its best possible values would not reach the front."""
    STOPPED = "stopped"
    """Training was stopped early, since it would not reach the front."""
    TOO_LARGE = "too_large"
    """Not trained, since training is estimated to take more memory than there is."""
    OUT_OF_MEMORY = "out_of_memory"
    """Training took more memory than there was, against the estimate."""
    DIVERGED = "diverged"
    """The loss became infinite or not a number."""
    CRASHED = "crashed"
    """The training process failed, or the worker died too often with this architecture."""
    TIMED_OUT = "timed_out"
    """Evaluation took longer than the recipe allows."""
    INTERRUPTED = "interrupted"
    """Ended by no fault of the architecture; another trial repeats it."""
    NOT_NEEDED = "not_needed"
    """Started while another worker started the last trial, or with nothing left to propose."""

    def __str__(self) -> str:
        return self.value
