"""The metrics that Ray exports, and the dashboard that shows them: one set of names and labels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qwen3emb.core.event_files import Attempt
from qwen3emb.encoding.gauges import TAGS, export_progress, gauges

DASHBOARD = Path(__file__).parents[3] / "cluster" / "grafana" / "qwen3emb.json"


def exported() -> set[str]:
    """The names as Prometheus has them: Ray puts `ray_` before a gauge's own."""
    return {f"ray_{gauge.info['name']}" for gauge in gauges().values()}


def dashboard() -> dict[str, Any]:
    loaded = json.loads(DASHBOARD.read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_every_metric_of_the_dashboard_is_exported_and_every_exported_one_is_shown() -> None:
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    assert set(re.findall(r"\bray_\w+", " ".join(shown))) == exported()
    # Nothing else in an expression may be a metric: words are functions, labels and variables.
    rest = set(re.findall(r"[a-zA-Z_]\w*", re.sub(r"\bray_\w+", "", " ".join(shown))))
    assert rest <= {"max", "by", *TAGS}
    choices = [v["query"]["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query"]
    assert {name for query in choices for name in re.findall(r"\bray_\w+", query)} <= exported()


def test_labels_and_variables_of_the_dashboard_are_there() -> None:
    board = dashboard()
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert {"datasource", "run", "stage"} == variables
    assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(board["panels"]))) <= variables
    assert all(gauge.info["tag_keys"] == TAGS for gauge in gauges().values())
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in board["panels"]]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in board["panels"]}) == len(places)


def test_without_a_connection_to_ray_nothing_is_exported() -> None:
    export_progress(Attempt("run", "mine", "0", 1, "20260101T000000000000Z"), {"work": "queries", "done": 1})
