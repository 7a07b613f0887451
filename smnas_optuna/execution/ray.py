"""Workers on a Ray cluster: each a task, placed by the GPUs that it needs, and placed anew when its node is lost."""

import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from smnas_optuna.errors import UserError
from smnas_optuna.execution.interruption import Interruption
from smnas_optuna.execution.restarts import Restarts
from smnas_optuna.execution.worker import Assignment, Ended, Finished, Message, conclude, work
from smnas_optuna.recipe.settings import Device

try:
    import ray
    from ray.util.queue import Empty, Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise UserError("--launcher ray: Ray is not installed; pip install 'smnas_optuna[ray]'") from None

_PORT = 6379
_CONNECT_SECONDS = 10.0
_LOOK_EVERY = 0.5
_MESSAGES_AT_ONCE = 100
_ENDING_SECONDS = 30.0


@dataclass
class _Place:
    assignment: Assignment
    restarts: Restarts = field(init=False)
    task: Any = None
    ended: Ended | None = None

    def __post_init__(self) -> None:
        self.restarts = Restarts(self.assignment.worker)

    @property
    def is_over(self) -> bool:
        return self.restarts.are_over or self.ended is not None


def connect(address: str | None) -> None:
    """Join a Ray cluster, or start one on this machine if there is no address; raises UserError."""
    try:
        if address not in (None, "auto", "local"):
            # Ray itself would try for minutes.
            parsed = urlsplit(address if "://" in address else f"//{address}")
            socket.create_connection((parsed.hostname, parsed.port or _PORT), timeout=_CONNECT_SECONDS).close()
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray-address {address}: {' '.join(str(error).split())}") from None


def needs(device: Device) -> dict[str, float]:
    """Return the resources that a worker asks Ray for."""
    if device.kind == "cpu" or (device.kind == "auto" and not ray.cluster_resources().get("GPU")):
        return {"num_cpus": device.cpu_threads or 1, "num_gpus": 0}
    return {"num_cpus": 1, "num_gpus": device.gpus_per_trial}


def places(device: Device) -> int:
    """Return how many workers find room in the cluster as it is: per GPU, or one per node where there are none."""
    wanted = needs(device)["num_gpus"]
    if wanted:
        return max(1, int(ray.cluster_resources().get("GPU", 0) // wanted))
    return sum(node["Alive"] for node in ray.nodes())


def workers_per_node(workers: int) -> int:
    """Return how many of some workers find themselves on one node if they are spread evenly."""
    nodes: int = sum(node["Alive"] for node in ray.nodes())
    return -(-workers // max(1, nodes))


def sharing(device: Device, workers: int) -> int:
    """Return how many of some workers may find themselves on one node without a GPU of their own."""
    wanted = needs(device)
    if wanted["num_gpus"]:
        return 1
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return max(1, min(workers, int(max(nodes, default=0.0) // wanted["num_cpus"])))


def supervise_on_ray(
    device: Device,
    assignments: Sequence[Assignment],
    hear: Callable[[Message], None],
    say: Callable[[str], None],
    interruption: Interruption | None = None,
) -> None:
    """Run a Ray task for each assignment, and return when each has nothing more to do; see ``local.supervise``.

    A task for which there is no room waits until there is: an autoscaling cluster makes some. The trial of a lost node
    is taken over by another worker once its lease has expired.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # With the driver, so that no other node's end takes the messages along.
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    # Each worker gets a process of its own, since a trial's owner is taken for alive as long as its process is.
    start = ray.remote(max_calls=1)(_work).options(max_retries=0, **needs(device))
    places = [_Place(assignment) for assignment in assignments]
    try:
        while any(not place.is_over for place in places):
            if interruption:
                interruption.check()
            for place in places:
                if place.task is None and not place.is_over and place.restarts.due <= time.monotonic():
                    place.task = start.remote(place.assignment, queue)
            tasks = {place.task: place for place in places if place.task is not None}
            ready, _ = ray.wait(list(tasks), timeout=_LOOK_EVERY) if tasks else ([], [])
            if not tasks:
                time.sleep(_LOOK_EVERY)
            for task in ready:
                _take_in(tasks[task], say)
            _pass_on(queue, places, hear)
    finally:
        _end([place.task for place in places if place.task is not None])
        _pass_on(queue, places, hear)
        queue.shutdown(force=True)
    conclude([place.ended for place in places])


def _work(assignment: Assignment, queue: Any) -> Ended:
    interruption = Interruption()
    # With this signal Ray cancels a task.
    with interruption.listen(signal.SIGINT):
        return work(assignment, queue.put, interruption)


def _take_in(place: _Place, say: Callable[[str], None]) -> None:
    """Note how a task has ended, and schedule another one if it died."""
    task, place.task = place.task, None
    try:
        ended: Ended = ray.get(task)
    except ray.exceptions.RayError as error:
        say(place.restarts.died(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"))
        return
    if ended.error:
        say(place.restarts.died(ended.error))
        return
    place.ended = ended
    if ended.mistake:
        conclude([ended])


def _pass_on(queue: Any, places: Sequence[_Place], hear: Callable[[Message], None]) -> None:
    restarts = {place.assignment.worker: place.restarts for place in places}
    while True:
        try:
            messages = queue.get_nowait_batch(min(_MESSAGES_AT_ONCE, queue.qsize()) or 1)
        except Empty:
            return
        for message in messages:
            if isinstance(message, Finished):
                restarts[message.worker].finished_trial()
            hear(message)


def _end(tasks: Sequence[Any]) -> None:
    """Interrupt what still runs, so that it ends its trials cleanly; then end it by force."""
    for task in tasks:
        ray.cancel(task)
    _, left = ray.wait(list(tasks), num_returns=len(tasks), timeout=_ENDING_SECONDS) if tasks else ([], [])
    for task in left:
        ray.cancel(task, force=True)
