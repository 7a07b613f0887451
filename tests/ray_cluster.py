"""A Ray cluster of several nodes on this machine."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import ray
from ray.cluster_utils import Cluster

# A lost node is noticed within seconds, instead of half a minute.
_NOTICE_LOST_NODES = {
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


@contextlib.contextmanager
def ray_cluster(cores: int) -> Iterator[Any]:
    """Run a cluster whose head node has so many cores.

    Ray installs its own SIGTERM handler in this process. Worker processes of a pool that a later test forks would
    inherit it, ignore their pool's SIGTERM, and hang that test.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        head = {"num_cpus": cores, "include_dashboard": False, "_system_config": _NOTICE_LOST_NODES}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        signal.signal(signal.SIGTERM, handler)
        yield cluster
        ray.shutdown()
        cluster.shutdown()
    finally:
        signal.signal(signal.SIGTERM, handler)
