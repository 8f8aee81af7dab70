"""Whether node types hold a demand: sentences by hand, and the verdict against Ray's own scheduler of nodes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen3emb.pipeline.demand import Demand
from qwen3emb.pipeline.fit import unmet
from qwen3emb.pipeline.supply import NodeType

HEAD = NodeType("head", 0, 0, 1, 1)
CPU = NodeType("cpu", 16, 0, 0, 2)
GPU1 = NodeType("gpu_worker", 0, 1, 0, 8)
GPU8 = NodeType("gpu8", 0, 8, 0, 4)
KEYS = {"size_key": "synthesize.tensor_parallel", "count_key": "synthesize.engines"}


@pytest.mark.parametrize(
    ("demand", "nodes", "sentence"),
    [
        (
            Demand("synthesize", "engine", 1, 0, 2, False, **KEYS),
            [HEAD, CPU, GPU1],
            "stage synthesize asks for 1 engine with 2 GPUs on one node; the largest node type gpu_worker has 1: "
            "set synthesize.tensor_parallel to 1, or use nodes with 2 GPUs",
        ),
        (
            Demand("synthesize", "engine", 8, 0, 2, False, **KEYS),
            [HEAD, CPU],
            "stage synthesize asks for 8 engines, each with 2 GPUs on one node; no node type has a GPU: "
            "use nodes with 2 GPUs",
        ),
        (
            Demand("weak", "training worker", 1, 0, 1, True, 1, "cluster.gpus_per_worker", "weak.num_workers"),
            [HEAD, CPU],
            "stage weak asks for 1 training worker with 1 GPU on one node; no node type has a GPU: "
            "set cluster.gpus_per_worker to 0 to run on CPUs, or use nodes with 1 GPU",
        ),
        (
            Demand("weak", "training worker", 32, 0, 1, True, 1, "cluster.gpus_per_worker", "weak.num_workers"),
            [HEAD, CPU, GPU1],
            "stage weak asks for 32 training workers, each with 1 GPU, all at the same time; at most 8 fit on the "
            "nodes that there can be (8 gpu_worker): set weak.num_workers to 8, or allow more nodes",
        ),
        (
            Demand("corpus", "reading task", 4, 1, 0, False, 0, "", "corpus.workers"),
            [HEAD, GPU1],
            "stage corpus asks for 4 reading tasks, each with 1 CPU on one node; no node type has a CPU: "
            "use nodes with 1 CPU",
        ),
        (
            Demand("synthesize", "engine", 2, 24, 0, False, 0, "synthesize.threads", "synthesize.engines"),
            [HEAD, CPU],
            "stage synthesize asks for 2 engines, each with 24 CPUs on one node; the largest node type cpu has 16: "
            "set synthesize.threads to 16, or use nodes with 24 CPUs",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(demand: Demand, nodes: list[NodeType], sentence: str) -> None:
    assert unmet([demand], nodes) == [sentence]
    assert unmet([demand], [*nodes, GPU8, NodeType("large", 32, 0, 0, 1)]) == []


def test_demands_of_one_phase_share_the_nodes_and_those_of_another_do_not() -> None:
    pool = Demand("evaluate", "encoder", 8, 0, 1, True, 0, "cluster.gpus_per_worker", "evaluate.workers")
    later = Demand("evaluate", "reranker", 8, 0, 1, True, 1)
    assert unmet([pool, later], [HEAD, GPU1]) == []
    beside = Demand("evaluate", "probing task", 1, 0, 1, False, 0)
    assert unmet([pool, beside], [HEAD, GPU1]) == [
        "stage evaluate asks for 1 probing task with 1 GPU, all at the same time; at most 0 fit on the nodes that "
        "there can be (8 gpu_worker) beside what the stage holds at the same time: allow more nodes"
    ]


def test_one_is_enough_of_what_may_come_later() -> None:
    assert unmet([Demand("corpus", "reading task", 64, 1, 0, False)], [HEAD, NodeType("cpu", 1, 0, 0, 1)]) == []
    assert unmet([Demand("corpus", "reading task", 64, 1, 0, False)], [NodeType("cpu", 1, 0, 0, 0)]) != []


def launched(demand: Demand, node_types: Sequence[NodeType]) -> tuple[dict[str, int], int]:
    """({node type: nodes to start}, bundles that never fit), by the scheduler of Ray's autoscaler."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    asked = {name: amount for name, amount in (("CPU", demand.cpus), ("GPU", demand.gpus)) if amount}
    configs = {
        node.name: NodeTypeConfig(
            node.name, node.min_count, node.max_count, resources={"CPU": node.cpus, "GPU": node.gpus}
        )
        for node in node_types
    }
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=configs,
            max_num_nodes=1000,
            resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(asked)] * demand.count),
        )
    )
    starts = {request.instance_type: request.count for request in reply.to_launch}
    return starts, len(reply.infeasible_resource_requests)


SIZES = [(0.25, 0), (0.5, 0), (1, 0), (4, 0), (0, 1), (0, 2), (0, 8), (1, 1)]
nodes = st.lists(
    st.tuples(st.integers(0, 32), st.sampled_from([0, 0, 1, 2, 8]), st.integers(0, 4)), min_size=1, max_size=4
)


@given(nodes, st.integers(1, 40), st.sampled_from(SIZES))
@example([(0, 8, 4), (0, 1, 8)], 40, (0, 1))
@example([(0, 8, 4), (0, 1, 8)], 17, (0, 2))
def test_the_verdict_is_that_of_rays_scheduler(
    offered: list[tuple[int, int, int]], count: int, size: tuple[float, float]
) -> None:
    types = [NodeType(f"type{i}", cpus, gpus, 0, most) for i, (cpus, gpus, most) in enumerate(offered)]
    demand = Demand("weak", "training worker", count, *size, True)
    _, never = launched(demand, types)
    assert bool(unmet([demand], types)) == bool(never)


def test_rays_scheduler_starts_gpu_nodes_for_cpu_work_once_all_cpu_nodes_are_up_unless_they_offer_no_cpus() -> None:
    work = Demand("mine", "search task", 100, 1, 0, False)
    with_cpus = NodeType("gpu", 16, 1, 0, 4)
    assert launched(work, [CPU, with_cpus])[0] == {"cpu": 2, "gpu": 4}
    assert launched(work, [CPU, GPU1, GPU8])[0] == {"cpu": 2}
