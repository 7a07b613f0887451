"""A search on a real Ray cluster of three nodes, all on this machine."""

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from smnas_optuna.errors import UserError
from smnas_optuna.execution.ray import connect, places, sharing, supervise_on_ray
from smnas_optuna.execution.worker import Finished, Message
from smnas_optuna.recipe.settings import Device
from tests.execution.cheap import CheapAssignment, check, create_cheap_study
from tests.execution.wrecker import Wrecker, living_children
from tests.ray_cluster import ray_cluster
from tests.servers import PostgreSQL

DEVICE = Device(kind="cpu", cpu_threads=1)


@pytest.fixture
def cluster() -> Iterator[Any]:
    with ray_cluster(cores=2) as cluster:
        yield cluster


def workers() -> list[psutil.Process]:
    """The processes in which Ray runs this test's workers."""
    return living_children(
        lambda process: process.status() != psutil.STATUS_ZOMBIE and process.name().startswith("ray::_work")
    )


@pytest.mark.parametrize(("trials", "count", "kills"), [(20, 3, 1), pytest.param(300, 8, 4, marks=pytest.mark.long)])
def test_a_search_survives_the_loss_of_a_node(
    cluster: Any, postgresql: PostgreSQL, trials: int, count: int, kills: int
) -> None:
    nodes = [cluster.add_node(num_cpus=3) for _ in range(2)]
    url = postgresql.create_database()
    create_cheap_study(url)
    connect(cluster.address)
    assert places(DEVICE) == 3
    assert [sharing(DEVICE, workers) for workers in (1, 2, 8)] == [1, 2, 3]
    finished = 0
    said: list[str] = []

    def hear(message: Message) -> None:
        nonlocal finished
        finished += isinstance(message, Finished)
        if finished == trials // 3:
            cluster.remove_node(nodes[1], allow_graceful=False)
            finished += 1

    assignments = [CheapAssignment(worker, url, trials, 0.5) for worker in range(count)]
    with Wrecker(workers, lambda: finished, postgresql, away=[0.5, 0.5], kills_before_restart=kills) as wrecker:
        supervise_on_ray(DEVICE, assignments, hear, said.append)
    assert finished > trials // 3
    assert wrecker.restarts == 2
    assert wrecker.kills >= 2 * kills
    check(url, trials)
    assert any("has died" in line for line in said)


def test_what_is_no_cluster_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"--ray-address 127\.0\.0\.1:1: "):
        connect("127.0.0.1:1")
