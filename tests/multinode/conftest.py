"""What tests of several nodes share: the nodes, and a file as one group, so that it runs in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.multinode.nodes import Nodes, why_not


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tell pytest-xdist the group."""
    item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture
def nodes(s3: dict[str, str]) -> Iterator[Callable[..., Nodes]]:
    """`nodes(b=4)`: a head without CPUs and a node `b` with 4, all of which know the S3 server."""
    if why_not():
        pytest.skip(why_not())
    clusters: list[Nodes] = []

    def started(**cpus: int) -> Nodes:
        cluster = Nodes(list(cpus), s3)
        clusters.append(cluster)
        for name, count in cpus.items():
            cluster.add(name, count)
        return cluster

    yield started
    for cluster in clusters:
        cluster.close()
