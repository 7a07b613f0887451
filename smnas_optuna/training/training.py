"""What runs in a training process: builds, trains, evaluates and times one architecture with MMEngine's Runner."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from smnas_optuna.detector import layers  # noqa: F401  # registers our layers and provides mmcv's operators
from smnas_optuna.detector.counting import build_on_meta, count_costs
from smnas_optuna.detector.deployment import compile_now, forget_compiled, prepare_for_deployment
from smnas_optuna.detector.memory import learns_statistics, training_memory
from smnas_optuna.errors import EvaluationInterrupted
from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.timing.cores import usable_cores
from smnas_optuna.timing.device_lock import DeviceLock, ShareDevice
from smnas_optuna.timing.latency import gpu_busy_time, measure_latency
from smnas_optuna.timing.timing_turn import TimingTurn
from smnas_optuna.training.checkpoint import (
    KeepCheckpoint,
    adopt_checkpoint,
    delete_checkpoints,
    resume,
    training_record,
)
from smnas_optuna.training.device_choice import use_device
from smnas_optuna.training.distributed import ProcessFailed, call_in_child, join, run_processes
from smnas_optuna.training.drawing import draw_trained
from smnas_optuna.training.failure import failure_of
from smnas_optuna.training.fitting import fit_batch
from smnas_optuna.training.initial_weights import choose_weights
from smnas_optuna.training.job import (
    SCRATCH,
    AutomaticWeights,
    CostRequest,
    Costs,
    Event,
    Failure,
    Initialised,
    Job,
    Memory,
    Progress,
    Resumed,
    Scores,
    TooLarge,
    UntrainedLatency,
)
from smnas_optuna.training.runner_config import model_of, runner_config
from smnas_optuna.training.runners import put_channels_last
from smnas_optuna.training.scoring import precisions
from smnas_optuna.training.trial_folder import record_of
from smnas_optuna.training.weights_file import write_weights

# At import, so that it happens once in the server of training processes and not in each trial.
register_all_modules()

# Iterations between two checks that the loss is finite.
_LOSS_CHECK_INTERVAL = 20
# Seconds within which the crash of another process of the same training is noticed.
_CRASH_DETECTION_SECONDS = 1.0


def count(request: CostRequest, report: Callable[[Costs], None]) -> None:
    """Report the costs of each architecture, in order, without training."""
    for architecture in request.architectures:
        model = model_config(architecture, classes=request.classes, detector=request.detector)
        report(Costs(*count_costs(model, architecture.input_size)))


def evaluate(job: Job, report: Callable[[Event], None]) -> None:
    """Count the costs of the job's architecture, train it, evaluate it, time it, and report each step.

    An architecture that does not fit into memory is not trained.

    Args:
        job: The request; its device settings say on how many GPUs to train.
        report: Called with each event.
    """
    use_device(job.kind)
    if job.device.cpu_threads:
        torch.set_num_threads(job.device.cpu_threads)
    if isinstance(job.weights, AutomaticWeights):
        job = replace(job, weights=choose_weights(job.weights, job.architecture, job.detector))
    costs, memory = call_in_child(_estimate, job)
    report(costs)
    report(Initialised(str(job.weights or SCRATCH)))
    report(memory)
    if isinstance(memory, TooLarge):
        return
    config = runner_config(job, memory.parts)
    record = training_record(job, memory.parts)
    resumed = adopt_checkpoint(job, record)
    if resumed is not None:
        resume(config, resumed)
    checkpoints = KeepCheckpoint(job.folder, record, resumed)
    processes = job.device.gpus_per_trial
    if processes == 1:
        _initialise(job.kind)
        _train(job, config, checkpoints, report)
        return
    try:
        run_processes(_train_distributed, processes, job, config, checkpoints, report)
    except ProcessFailed as error:
        # A process that raised an error has reported its own Failure before, and only the first one counts.
        report(Failure(f"crashed: {error}"))


def _estimate(job: Job) -> tuple[Costs, Memory | TooLarge]:
    """Return the costs of an architecture, and the memory that training it needs."""
    return Costs(*count_costs(model_of(job), job.architecture.input_size)), _fit(job)


def _fit(job: Job) -> Memory | TooLarge:
    """Choose the number of parts that each GPU's batch is split into."""
    training, processes = job.training, job.device.gpus_per_trial
    batch = training.batch_size // processes
    size = job.architecture.input_size
    longest = max(size.width, size.height)
    model = build_on_meta(model_of(job))

    def needed(parts: int) -> int:
        images = batch // parts
        # The last batch of an epoch may mix orientations; its images are then padded to a square.
        padded = InputSize(longest, longest) if job.dataset.has_both_orientations and images > 1 else size
        return training_memory(
            model,
            padded,
            images,
            device=job.kind,
            optimizer_states=2 if training.optimizer == "AdamW" else 1,
            averaged=bool(training.average_weights),
            amp=training.amp and job.kind == "cuda",
            accumulating=parts > 1,
            distributed=processes > 1,
        )

    # On GPUs each process has its own; on the CPU all of them share the machine's memory.
    usable = job.memory if job.kind == "cuda" else job.memory // processes
    # Batch normalisation computes its statistics from the images that go through it together, so splitting the batch
    # would change the training. With pre-trained weights the backbone's statistics are frozen.
    return fit_batch(batch, usable, needed, divisible=not learns_statistics(model))


def _train_distributed(
    job: Job, config: Config, checkpoints: KeepCheckpoint, report: Callable[[Event], None], meeting: Path
) -> None:
    """Train in one of several processes."""
    try:
        _initialise(job.kind)
        join(config, job.kind, meeting)
        _train(job, config, checkpoints, report)
    except Exception as error:
        # If the error is a consequence of another process's crash, this process is killed before it can report it.
        time.sleep(_CRASH_DETECTION_SECONDS)
        report(failure_of(error, job.folder))
        raise
    torch.distributed.destroy_process_group()


def _train(job: Job, config: Config, checkpoints: KeepCheckpoint, report: Callable[[Event], None]) -> None:
    lock = DeviceLock.of(job.kind, str(job.folder))
    # On a CPU, timing uses all cores, so none is reserved for it.
    turn = TimingTurn(lock, usable_cores() if job.kind == "cuda" else (), str(job.folder))
    turn.leave_core()
    runner = Runner.from_cfg(config)
    runner.register_hook(ShareDevice(lock, job.kind), priority="VERY_HIGH")
    if job.identity is not None:
        runner.register_hook(checkpoints, priority="LOWEST")
    runner.register_hook(_ReportProgress(report), priority="LOWEST")
    main = is_main_process()
    built = time.perf_counter()
    if main:
        config.dump(str(job.folder / "config.py"))
        epochs = checkpoints.epochs_before
        samples = _samples(runner, job)
        report(Resumed(epochs) if epochs else UntrainedLatency(_untrained_latency(runner, samples, job, turn)))
    start = time.perf_counter()
    if job.kind == "cpu":
        put_channels_last(_detector(runner))
    runner.train()
    if main:
        _save_weights(runner, job)
    trained = time.perf_counter()
    measured = runner.test()
    evaluated = time.perf_counter()
    if not main:
        return
    model = _prepare_for_timing(runner, samples, job)
    latency, spread = _trained_latency(model, samples, job, turn)
    busy = None
    if job.kind == "cuda":
        with turn.taken():
            busy = gpu_busy_time(model, samples)
    scores = Scores(
        metrics=precisions(measured, job.dataset),
        latency_ms=latency,
        latency_spread_ms=spread,
        train_seconds=checkpoints.seconds_before + trained - start,
        evaluation_seconds=evaluated - trained,
        timing_seconds=start - built + time.perf_counter() - evaluated,
        gpu_busy_ms=busy,
    )
    _draw_detections(runner, job, scores, lock)
    report(scores)
    delete_checkpoints(job, checkpoints.record)


def _draw_detections(runner: Runner, job: Job, scores: Scores, lock: DeviceLock) -> None:
    """Draw some detections; an error is logged, and does not fail the trial."""
    title = f"mAP {scores.metrics['map']:.3f}, {scores.latency_ms:.1f} ms"
    path = job.folder / "detections.jpg"
    try:
        draw_trained(_detector(runner), runner.test_dataloader.dataset, title, str(job.architecture), path, lock)
    except Exception:
        runner.logger.exception(f"{path} could not be drawn")


def _trained_latency(model: Any, samples: list[Any], job: Job, turn: TimingTurn) -> tuple[float, float]:
    """Time a trained detector, repeatedly if the spread is too large.

    Returns the latency and the spread, both in milliseconds, of the attempt with the smallest relative spread.
    """
    timing = job.device.timing
    measured = []
    for _ in range(timing.attempts):
        with turn.taken():
            measured.append(measure_latency(model, samples, timing, torch.device(job.kind)))
        latency, spread = measured[-1]
        if spread <= timing.spread_limit * latency:
            break
    return min(measured, key=lambda pair: pair[1] / pair[0])


def _detector(runner: Runner) -> Any:
    """Return the detector without the wrapper for distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _samples(runner: Runner, job: Job) -> list[Any]:
    """Load the images for timing, each as a batch of one.

    With compiled layers, only images of the most frequent size are returned, since layers are compiled for one size.
    """
    dataset = runner.test_dataloader.dataset
    indices = range(min(len(dataset), job.device.timing.images))
    samples = [runner.test_dataloader.collate_fn([dataset[index]]) for index in indices]
    if not job.device.timing.compiled:
        return samples
    sizes = [sample["inputs"][0].shape for sample in samples]
    commonest, _ = Counter(sizes).most_common(1)[0]
    return [sample for sample, size in zip(samples, sizes, strict=True) if size == commonest]


def _prepare_for_timing(runner: Runner, samples: list[Any], job: Job) -> Any:
    """Return a copy of the detector that is prepared for timing; compiles its layers if the recipe says so.

    Call this before the device is locked for timing, since compiling takes long.
    """
    compiled = job.device.timing.compiled
    model = prepare_for_deployment(_detector(runner), compiled=compiled)
    if compiled:
        compile_now(model, samples[0])
    return model


def _untrained_latency(runner: Runner, samples: list[Any], job: Job, turn: TimingTurn) -> float:
    """Return the latency of the untrained detector in milliseconds, with a score threshold that no detection passes."""
    _detector(runner).init_weights()
    model = _prepare_for_timing(runner, samples, job)
    (model.roi_head if hasattr(model, "roi_head") else model.bbox_head).test_cfg.score_thr = 1.0
    timing = job.device.timing.model_copy(update={"rounds": 2})
    with turn.taken():
        latency, _ = measure_latency(model, samples, timing, torch.device(job.kind))
    if timing.compiled:
        del model
        forget_compiled()
    return latency


def _save_weights(runner: Runner, job: Job) -> None:
    """Save the weights for ``mmdet.apis.init_detector``, readable by torch's safe loading.

    MMEngine's checkpoints contain objects that torch refuses to load by default since release 2.6.
    """
    weights = {name: tensor.cpu().contiguous() for name, tensor in _detector(runner).state_dict().items()}
    identity = record_of(job.identity, job.architecture) if job.identity else {"architecture": str(job.architecture)}
    meta = {"dataset_meta": {"classes": list(job.dataset.classes)}, **identity}
    write_weights({"state_dict": weights, "meta": meta}, job.folder / "weights.pth")


class _ReportProgress(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Reports the mean loss of each epoch, and raises FloatingPointError if the loss becomes infinite or NaN."""

    def __init__(self, report: Callable[[Event], None]) -> None:
        self._report = report
        self._losses: list[torch.Tensor] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Record the loss; check it only at intervals, since reading it waits for the GPU."""
        assert outputs is not None
        self._losses.append(outputs["loss"].detach())
        if len(self._losses) % _LOSS_CHECK_INTERVAL == 0:
            self._check(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Report the epoch that has just ended."""
        loss = self._check(runner)
        self._losses.clear()
        if is_main_process():
            self._report(Progress(runner.epoch + 1, runner.max_epochs, loss))

    def _check(self, runner: Runner) -> float:
        loss = float(torch.stack(self._losses).mean())
        if not math.isfinite(loss):
            rate = runner.optim_wrapper.get_lr()["lr"][0]
            raise FloatingPointError(f"loss became {loss} in epoch {runner.epoch + 1} at learning rate {rate:.3g}")
        return loss


def _initialise(kind: str) -> None:
    """Initialise CUDA, if ``kind`` is ``cuda``; raises EvaluationInterrupted if that fails."""
    if kind == "cuda":
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's is untyped
        except RuntimeError as error:
            raise EvaluationInterrupted(f"the GPU can no longer be used: {error}") from None
