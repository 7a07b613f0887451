"""Timing holds a device alone, and no wait is endless: tests with processes that are stopped, hang or are killed."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Queue

import psutil
import pytest
import torch.distributed

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.errors import EvaluationInterrupted
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.timing import device_lock
from smnas_optuna.timing.device_lock import DeviceLock, ShareDevice
from smnas_optuna.training.failure import failure_of
from smnas_optuna.training.job import Failure, Job, Progress, Scores
from smnas_optuna.training.outcome import Outcome
from smnas_optuna.training.process import evaluate
from smnas_optuna.training.server import context, preload

# Far more than anything here takes; what waits in vain is seen by it.
SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    preload()


@pytest.fixture
def device() -> Iterator[str]:
    """Name of a device that no other process locks."""
    name = f"test-{os.getpid()}-{os.urandom(4).hex()}"
    users = DeviceLock(name, "this test")._users
    yield name
    shutil.rmtree(users)
    users.with_suffix(".gate").unlink()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> "Queue[str]":
    """The warnings about waits, which are logged at once."""
    messages: Queue[str] = Queue()
    monkeypatch.setattr(device_lock, "_warn", messages.put)
    monkeypatch.setattr(device_lock, "_WARNING_SECONDS", 0.0)
    return messages


def _hold(name: str, action: str, ready: Connection) -> None:
    lock = DeviceLock(name, "work_dirs/tiny/trial_00003")
    with lock.exclusive() if action == "time" else contextlib.nullcontext():
        if action == "train":
            lock.acquire_shared()
        ready.send(None)
        ready.recv()
    lock.release_shared()


class Holder:
    """A process that trains or times on a device until ``let_go`` is called."""

    def __init__(self, name: str, action: str) -> None:
        self._connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_hold, args=(name, action, theirs))
        self.process.start()
        theirs.close()
        self._connection.recv()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def name(self) -> str:
        return f"process {self.pid} (work_dirs/tiny/trial_00003)"

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        # Delivered by when the process is seen to be stopped.
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            while stat.read().split()[2] != "T":
                stat.seek(0)

    def let_go(self) -> None:
        self._connection.send(None)
        self.process.join()


@pytest.fixture
def hold(device: str) -> Iterator[Callable[[str], Holder]]:
    holders: list[Holder] = []

    def start(action: str) -> Holder:
        holders.append(Holder(device, action))
        return holders[-1]

    yield start
    for holder in holders:
        holder.process.kill()
        holder.process.join()


class Background(threading.Thread):
    """A thread that calls a function which may have to wait."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._action = action
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._action()
        except Exception as error:
            self.error = error

    def wait(self) -> None:
        self.join(SECONDS)
        assert not self.is_alive(), "it waits without end"
        if self.error is not None:
            raise self.error


def time_on(device: str) -> None:
    with DeviceLock(device, "this test").exclusive():
        pass


def train_on(device: str) -> None:
    lock = DeviceLock(device, "this test")
    lock.acquire_shared()
    lock.release_shared()


Hold = Callable[[str], Holder]


@pytest.mark.parametrize(
    ("action", "other", "word"),
    [(time_on, "train", "timing"), (train_on, "time", "training"), (time_on, "time", "timing")],
)
def test_a_warning_names_the_process_that_is_waited_for(
    device: str, hold: Hold, warnings: "Queue[str]", action: Callable[[str], None], other: str, word: str
) -> None:
    holder = hold(other)
    waiting = Background(lambda: action(device))
    message = warnings.get(timeout=SECONDS)
    holder.let_go()
    waiting.wait()
    assert re.fullmatch(rf"{word} has waited \d+ s for {re.escape(holder.name)}", message)


def test_no_iteration_starts_while_a_process_waits_to_time(device: str, hold: Hold, warnings: "Queue[str]") -> None:
    holder = hold("train")
    timing = Background(lambda: time_on(device))
    warnings.get(timeout=SECONDS)
    training = Background(lambda: train_on(device))
    while "training has waited" not in warnings.get(timeout=SECONDS):
        pass
    holder.let_go()
    timing.wait()
    training.wait()


def test_trainings_share_a_device(device: str, hold: Hold) -> None:
    hold("train")
    hold("train")
    train_on(device)


def test_timing_does_not_wait_for_a_stopped_process(device: str, hold: Hold, warnings: "Queue[str]") -> None:
    holder = hold("train")
    holder.stop()
    Background(lambda: time_on(device)).wait()
    stopped = holder.name.replace(")", ", stopped)")
    assert warnings.get(timeout=SECONDS) == f"timing starts during an iteration of {stopped}"


@pytest.mark.usefixtures("warnings")
def test_timing_gives_up_on_an_iteration_that_does_not_end(
    device: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = hold("train")
    monkeypatch.setattr(device_lock, "_PATIENCE_SECONDS", 0.2)
    timing = Background(lambda: time_on(device))
    with pytest.raises(EvaluationInterrupted, match=re.escape(holder.name)):
        timing.wait()
    # The gate is open again.
    train_on(device)


@pytest.mark.usefixtures("warnings")
def test_a_process_that_is_stopped_while_it_times_keeps_the_device(
    device: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = hold("time")
    holder.stop()
    monkeypatch.setattr(device_lock, "_PATIENCE_SECONDS", 0.2)
    for action in (time_on, train_on):
        waiting = Background(lambda action=action: action(device))  # type: ignore[misc]  # mypy: of which type action is
        with pytest.raises(EvaluationInterrupted, match=rf"until process {holder.pid} .*, stopped\) continues"):
            waiting.wait()


def test_a_given_up_wait_interrupts_the_trial(tmp_path: Path) -> None:
    assert failure_of(EvaluationInterrupted("busy"), tmp_path) == Failure("busy", Outcome.INTERRUPTED)


def test_the_file_of_a_process_killed_during_an_iteration_is_removed(device: str, hold: Hold) -> None:
    holder = hold("train")
    holder.process.kill()
    holder.process.join()
    lock = DeviceLock(device, "this test")
    with lock.exclusive():
        left = {path.name.partition(".")[0] for path in lock._users.iterdir()}
    assert left == {str(os.getpid())}


def _train_together(rank: int, folder: Path, name: str, iterations: Connection) -> None:
    """Run one of two processes that train together on the CPU, and check that no process times meanwhile."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    hook = ShareDevice(DeviceLock(name, "training"), "cpu")
    for number in range(100):
        hook.before_train_iter(None, number)
        if (folder / "timing").exists():
            os._exit(1)
        torch.distributed.all_reduce(torch.ones(1))
        if (folder / "timing").exists():
            os._exit(1)
        hook.after_train_iter(None)
        iterations.send(number)
    torch.distributed.destroy_process_group()


def test_processes_of_one_training_wait_together_for_timing(device: str, tmp_path: Path) -> None:
    iterations, theirs = context.Pipe(duplex=False)
    ranks = [context.Process(target=_train_together, args=(rank, tmp_path, device, theirs)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    theirs.close()
    lock = DeviceLock(device, "this test")

    def time_again_and_again() -> None:
        with contextlib.suppress(EOFError):
            while True:
                # At the moment when one of them continues and the other may still be in the previous iteration.
                iterations.recv()
                with lock.exclusive():
                    (tmp_path / "timing").touch()
                    os.sched_yield()
                    (tmp_path / "timing").unlink()

    timing = Background(time_again_and_again)
    for rank in ranks:
        rank.join(SECONDS)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    timing.wait()
    assert codes == [0, 0]


@pytest.fixture
def job(tiny_recipe: Path, tmp_path: Path) -> Job:
    recipe = load_recipe(str(tiny_recipe), ["structural.training.epochs=3"])
    stage, dataset = recipe.structural, open_dataset(recipe.dataset)
    architecture = Architecture.parse("64x48 ResNet18(w=8) RetinaNet")
    return Job(architecture, dataset, stage.detector, stage.training, recipe.device, tmp_path / "trial", kind="cpu")


def test_two_processes_train_while_another_times_repeatedly(job: Job) -> None:
    over = threading.Event()

    def time_again_and_again() -> None:
        while not over.wait(0.01):
            time_on("cpu")

    training = job.training.model_copy(update={"time_limit_minutes": 2})
    device = job.device.model_copy(update={"gpus_per_trial": 2})
    timing = Background(time_again_and_again)
    *_, last = evaluate(replace(job, training=training, device=device))
    over.set()
    assert isinstance(last, Scores)
    timing.wait()


def suspend_in_iteration(pid: int, gate: Path) -> None:
    """Suspend a training process that is not just taking its turn, in which it would hold up all others."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            pass
        with open(gate, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                os.kill(pid, signal.SIGCONT)


def test_a_suspended_training_does_not_delay_timing(job: Job) -> None:
    training = job.training.model_copy(update={"epochs": 10_000})
    with contextlib.closing(evaluate(replace(job, training=training))) as events:
        next(event for event in events if isinstance(event, Progress))
        users = DeviceLock("cpu", "this test")._users
        (trial,) = [path for path in users.iterdir() if str(job.folder) in path.read_text(encoding="utf-8")]
        pid = int(trial.name.partition(".")[0])
        for _ in range(5):
            suspend_in_iteration(pid, users.with_suffix(".gate"))
            Background(lambda: time_on("cpu")).wait()
            os.kill(pid, signal.SIGCONT)
            next(event for event in events if isinstance(event, Progress))
