"""A search on a real Ray cluster of three nodes, all on this machine."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from smnas_optuna.errors import UserError
from smnas_optuna.execution.ray import connect, places, supervise_on_ray
from smnas_optuna.execution.worker import Finished, Message
from smnas_optuna.recipe import Device
from tests.execution.cheap import CheapOrder, check, create_cheap_study
from tests.servers import PostgreSQL

DEVICE = Device(kind="cpu", cpu_threads=1)


@pytest.fixture
def cluster() -> Iterator[Any]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_search_survives_the_loss_of_a_node(cluster: Any, postgresql: PostgreSQL) -> None:
    nodes = [cluster.add_node(num_cpus=3) for _ in range(2)]
    url = postgresql.create_database()
    create_cheap_study(url)
    connect(cluster.address)
    assert places(DEVICE) == 3
    heard: list[Message] = []
    said: list[str] = []
    lost = threading.Timer(12, cluster.remove_node, [nodes[1]], {"allow_graceful": False})

    def hear(message: Message) -> None:
        if isinstance(message, Finished) and not heard:
            lost.start()
        heard.append(message)

    started = time.monotonic()
    supervise_on_ray(DEVICE, [CheapOrder(worker, url, 80, 1.0) for worker in range(6)], hear, said.append)
    assert time.monotonic() - started > 12
    check(url, 80)
    assert any("has died" in line for line in said)


def test_what_is_no_cluster_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"--ray-address 127\.0\.0\.1:1: "):
        connect("127.0.0.1:1")
