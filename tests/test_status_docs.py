"""The dashboard, the alert rules and the page of the docs name metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from rtunnel.status.metrics import Metrics
from tests.support.statuses import connection, process, row

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "docs" / "grafana" / "dashboard.json"
ALERTS = ROOT / "docs" / "grafana" / "alerts.yml"
PAGE = ROOT / "docs" / "status.md"

METRIC = re.compile(r"\b(?:rtunnel|process|python)_[a-z_]+\b")


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The labels of each metric of a process that has everything."""
    status = process(connection(row(), rtt_s=0.2, rtt_best_s=0.1))
    text, _ = Metrics(lambda: status).render("")
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> Iterator[str]:
    """Yield every expression of the dashboard and the rules."""
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard()["templating"]["list"]:
        yield variable["query"]
    yield from (rule["expr"] for rule in rules())


def test_every_metric_of_the_dashboard_and_the_alerts_exists(
    known: dict[str, set[str]],
) -> None:
    named = {name for each in expressions() for name in METRIC.findall(each)}
    assert len(named) > 10
    assert named - set(known) == set()


def test_every_label_they_select_by_exists(known: dict[str, set[str]]) -> None:
    wrong = []
    for each in expressions():
        for name, selectors in re.findall(r"\b(rtunnel_[a-z_]+)\{([^}]*)\}", each):
            used = set(re.findall(r"(\w+)=~?\"", selectors)) - {"instance", "job"}
            wrong += [(name, label) for label in used - known[name]]
    assert wrong == []


def test_the_dashboard_has_one_place_for_each_panel() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_alert_says_how_bad_it_is_and_what_it_means() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_the_page_lists_every_metric_of_ours_and_no_other(
    known: dict[str, set[str]],
) -> None:
    ours = {name for name in known if name.startswith("rtunnel_")}
    assert set(re.findall(r"`(rtunnel_[a-z_]+)`", PAGE.read_text())) == ours
