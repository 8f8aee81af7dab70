"""Workers of a pool get the cores of the node they are on, on one node and on several."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qwen3emb.core.cores import usable_cores

pytestmark = pytest.mark.integration

# A process of its own: the nodes of a test cluster would meet the Ray of other tests.
CODE = """
import json, sys
import ray, torch
from ray.cluster_utils import Cluster
from qwen3emb.encoding.workers import EncodeWorker, actor_options, threads_here

class Asked(EncodeWorker):
    def threads(self):
        torch.set_num_threads(threads_here(*self._pool))
        return ray.get_runtime_context().get_node_id(), torch.get_num_threads()

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
ray.init(address=cluster.address, logging_level="ERROR")
found = {}
for nodes in (1, 2):
    if nodes == 2:
        cluster.add_node(num_cpus=4)
        cluster.wait_for_nodes()
    for workers in (1, 2, 4):
        pool = [ray.remote(Asked).options(**actor_options(0)).remote(workers) for _ in range(workers)]
        answers = ray.get([actor.threads.remote() for actor in pool])
        found[f"{nodes} {workers}"] = [len({node for node, _ in answers}), sorted({n for _, n in answers})]
        for actor in pool:
            ray.kill(actor)
print(json.dumps(found))
ray.shutdown()
cluster.shutdown()
"""


def test_a_pool_shares_the_cores_of_each_node_and_not_those_of_the_driver() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_"))}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cores, found = usable_cores(), json.loads(done.stdout.splitlines()[-1])
    for workers in (1, 2, 4):
        assert found[f"1 {workers}"] == [1, [max(1, cores // workers)]], found
        assert found[f"2 {workers}"] == [min(2, workers), [max(1, cores // -(-workers // 2))]], found
