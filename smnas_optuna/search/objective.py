"""The objective function: architecture -> costs -> gate -> training -> values, recorded on the trial."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from smnas_optuna.data.datasets import CheckedDataset
from smnas_optuna.detector.pretrained import Pretrained
from smnas_optuna.errors import EvaluationInterrupted
from smnas_optuna.samplers import PartialOrderPruningSampler
from smnas_optuna.search.constraints import limits_text
from smnas_optuna.search.duration import predicted_seconds, seconds_after_training
from smnas_optuna.search.search import Search, known_costs
from smnas_optuna.search.timing_margin import optimistic_latency, timing_pairs
from smnas_optuna.study.budget import Deadline, duration_text
from smnas_optuna.study.retry import identity_of, interrupted_before
from smnas_optuna.study.trial_outcome import record_outcome
from smnas_optuna.training.job import (
    AutomaticWeights,
    Costs,
    Event,
    Failure,
    Initialised,
    Job,
    Memory,
    Progress,
    Resumed,
    Scores,
    Target,
    TooLarge,
    UntrainedLatency,
)
from smnas_optuna.training.outcome import Outcome
from smnas_optuna.training.process import Waitable, evaluate
from smnas_optuna.training.trial_folder import folder_of, prepare_folder

_logger = logging.getLogger(__name__)


class EvaluationFailed(Exception):
    """An architecture could not be evaluated; its trial fails with this text as its reason and the search goes on."""


@dataclass(frozen=True)
class TrialContext:
    """What a trial gets from the worker that runs it.

    Args:
        trials: The study's, as they were when this one was about to be proposed.
        release_claim: To be called once the trial's user attribute ``architecture`` is in the database, so that the
            next worker may propose. It raises where the trial has to end there, since another has the architecture or
            it is not needed any more.
        ends: When one of them becomes readable, the trial has to end at once: ``check`` raises.
        check: Raises why the trial has to end, if it has: KeyboardInterrupt, or LeaseLost if it is another worker's.
        deadline: When the search has to end; None for never.
    """

    trials: Sequence[FrozenTrial]
    release_claim: Callable[[], None]
    ends: Sequence[Waitable]
    check: Callable[[], None]
    deadline: Deadline | None = None


class DetectorObjective:
    """Evaluates the detector that a trial proposes.

    Args:
        search: What the study searches.
        dataset: The checked data set.
        device: The device's name, as trials record it.
        target: The device.
        folder: Each trial gets a folder below, with its config, log and checkpoint.
        weights: What architectures for which no weights are required start from, or where to look for it; None to train
            them from scratch.
        listen: Called with each trial's number, its architecture and each event of its evaluation.
        describe: Called with a trial that is about to end, its epochs' losses and its folder.
    """

    def __init__(
        self,
        search: Search,
        dataset: CheckedDataset,
        device: str,
        target: Target,
        folder: Path,
        weights: Pretrained | AutomaticWeights | None,
        listen: Callable[[int, str, Event], None],
        describe: Callable[[optuna.Trial, list[float], Path], None],
    ) -> None:
        self._search = search
        self._dataset = dataset
        self._device = device
        self._target = target
        self._folder = folder
        self._weights = weights
        self._listen = listen
        self._describe = describe

    def __call__(self, trial: optuna.Trial, context: TrialContext) -> tuple[float, ...]:
        """Evaluate and return the values of the recipe's objectives.

        Args:
            trial: Just started.
            context: Ends the trial where the worker has to end, or the trial is not its own any more.

        Raises:
            optuna.TrialPruned: The architecture has been evaluated before, provably cannot reach the front, costs more
                than a constraint allows, does not fit into memory, or would not end before the deadline.
            EvaluationFailed: It could not be evaluated.
            EvaluationInterrupted: No architecture could be evaluated here now, as on a full disk.
        """
        started = time.perf_counter()
        settings = self._search.settings
        architecture = self._search.space.suggest(trial)
        trial.set_user_attr("architecture", str(architecture))
        context.release_claim()
        for name, cost in known_costs(architecture).items():
            trial.set_user_attr(name, cost)
        self._gate(trial)
        # Only one that was enqueued may repeat others, and that was there already.
        repeated = [number for each in context.trials[trial.number :][:1] for number in interrupted_before(each)]
        identity = identity_of(trial.study, trial.number, repeated)
        folder = folder_of(self._folder, trial.number)
        if moved := prepare_folder(folder, identity, architecture):
            _logger.warning("%s: was another study's, and is now %s", folder, moved)
        loaders = settings.training.loader_workers
        required = self._search.pretrained_weights(architecture.backbone)
        job = Job(
            architecture,
            self._dataset,
            settings.detector,
            settings.training.suited_to(architecture),
            self._search.recipe.device,
            folder,
            kind=self._target.kind,
            gpus=self._target.gpus,
            weights=required.pretrained if required else self._weights,
            loader_workers=self._target.loader_workers if loaders is None else loaders,
            memory=self._target.memory,
            identity=identity,
            former=tuple(folder_of(self._folder, number) for number in reversed(repeated)),
        )
        trial.set_user_attr("device", self._device)
        losses: list[float] = []
        resumed_after, training_started = 0, time.perf_counter()
        with closing(evaluate(job, context.ends)) as events:
            for event in events:
                context.check()
                self._listen(trial.number, str(architecture), event)
                if isinstance(event, Costs):
                    trial.set_user_attr("flops", event.flops)
                    trial.set_user_attr("params", event.params)
                    self._refuse_costly(trial, params=event.params)
                    self._gate(trial)
                    # Of a training that resumes, what is left of it is known after the next epoch.
                    expected = None if repeated else predicted_seconds(context.trials, event.flops)
                    self._refuse_late(trial, context, expected)
                elif isinstance(event, Initialised):
                    trial.set_user_attr("weights", event.weights)
                elif isinstance(event, Memory):
                    trial.set_user_attr("memory_gb", event.bytes / 2**30)
                    if event.parts > 1:
                        trial.set_user_attr("gradient_accumulation", event.parts)
                elif isinstance(event, TooLarge):
                    self._skip(trial, event)
                elif isinstance(event, UntrainedLatency):
                    training_started = time.perf_counter()
                    trial.set_user_attr("untrained_latency_ms", event.milliseconds)
                    pairs = timing_pairs(context.trials, self._device)
                    optimistic = optimistic_latency(event.milliseconds, pairs)
                    self._refuse_costly(trial, latency_ms=optimistic)
                    self._gate(trial, latency_ms=optimistic)
                elif isinstance(event, Resumed):
                    resumed_after, training_started = event.epochs, time.perf_counter()
                    trial.set_user_attr("resumed_after_epochs", event.epochs)
                elif isinstance(event, Progress):
                    losses.append(event.loss)
                    each = (time.perf_counter() - training_started) / (event.epoch - resumed_after)
                    left = each * (event.epochs - event.epoch) + seconds_after_training(context.trials)
                    self._refuse_late(trial, context, left)
                elif isinstance(event, Failure):
                    if event.outcome is Outcome.INTERRUPTED:
                        raise EvaluationInterrupted(event.reason)
                    record_outcome(trial, event.outcome, event.reason)
                    self._describe_safely(trial, losses, job.folder)
                    raise EvaluationFailed(event.reason)
                elif isinstance(event, Scores):
                    self._record(trial, event)
        context.check()
        trial.set_user_attr("seconds", time.perf_counter() - started)
        self._describe_safely(trial, losses, job.folder)
        return tuple(float(trial.user_attrs[objective]) for objective in settings.objectives)

    def _describe_safely(self, trial: optuna.Trial, losses: list[float], folder: Path) -> None:
        """Describe a trial; what is already known of it is worth more than its description."""
        try:
            self._describe(trial, losses, folder)
        except Exception:
            _logger.exception("trial %d could not be described", trial.number)

    def _gate(self, trial: optuna.Trial, **measured: float) -> None:
        """End a trial before its training if not even the best that it can be would reach the front."""
        sampler = trial.study.sampler
        if not isinstance(sampler, PartialOrderPruningSampler):
            return
        costs = {**trial.user_attrs, **measured}
        objectives = self._search.settings.objectives
        known = {index: float(costs[name]) for index, name in enumerate(objectives) if name in costs}
        reason = sampler.is_dominated(trial.study, trial, known) if known else None
        if reason:
            record_outcome(trial, Outcome.DOMINATED, reason)
            raise optuna.TrialPruned(reason)

    def _refuse_costly(self, trial: optuna.Trial, **costs: float) -> None:
        """End a trial before its training if it costs more than the recipe allows."""
        constraints = self._search.recipe.constraints
        violated = {name: excess for name, excess in constraints.excesses(costs).items() if excess > 0}
        if violated:
            for name, excess in violated.items():
                trial.set_constraint(name, excess)
            ((name, cost),) = costs.items()
            reason = f"costs too much: {name} {cost:.4g}, where constraints allow {limits_text(constraints)}"
            record_outcome(trial, Outcome.TOO_COSTLY, reason)
            raise optuna.TrialPruned(reason)

    def _refuse_late(self, trial: optuna.Trial, context: TrialContext, seconds: float | None) -> None:
        """End a trial that needs so many more seconds, if it would end after the deadline."""
        deadline = context.deadline
        if deadline is None or seconds is None or not deadline.is_missed_by(seconds):
            return
        left = deadline.left
        trial.set_user_attr("seconds_needed", seconds)
        trial.set_user_attr("budget_needed", deadline.budget_for(seconds))
        reason = f"would end too late: it needs about {duration_text(seconds)} more, and "
        reason += f"{duration_text(left)} are left for the search" if left > 0 else "the time for the search is over"
        record_outcome(trial, Outcome.TOO_LATE, reason)
        raise optuna.TrialPruned(reason)

    def _skip(self, trial: optuna.Trial, estimate: TooLarge) -> None:
        """End a trial before its training, which does not fit into memory."""
        images = "one image" if estimate.images == 1 else f"{estimate.images} images at once"
        reason = (
            f"would run out of memory: training on {images} takes about {estimate.needed / 2**30:.3g} GiB, and "
            f"{estimate.usable / 2**30:.3g} GiB are usable on {self._device}"
        )
        trial.set_user_attr("memory_gb", estimate.needed / 2**30)
        record_outcome(trial, Outcome.TOO_LARGE, reason)
        raise optuna.TrialPruned(reason)

    def _record(self, trial: optuna.Trial, scores: Scores) -> None:
        for name, value in scores.metrics.items():
            trial.set_user_attr(name, value)
        trial.set_user_attr("latency_ms", scores.latency_ms)
        trial.set_user_attr("latency_spread_ms", scores.latency_spread_ms)
        if scores.gpu_busy_ms is not None:
            trial.set_user_attr("gpu_busy_ms", scores.gpu_busy_ms)
        trial.set_user_attr("train_seconds", scores.train_seconds)
        trial.set_user_attr("evaluation_seconds", scores.evaluation_seconds)
        trial.set_user_attr("timing_seconds", scores.timing_seconds)
        for name, excess in self._search.recipe.constraints.excesses(trial.user_attrs).items():
            trial.set_constraint(name, excess)
