"""What Prometheus, its operator and its adapter get from the chart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.chart import CHART, ROOT, SETS, Rendered, render
from tests.deploy.test_monitoring import promtool
from tests.deploy.test_schemas import ADAPTER

RUNBOOKS = "https://runbooks.example/resnet-serve"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"


def test_the_alerts_are_those_of_prometheus(charts: dict[str, Rendered]) -> None:
    rules = charts["everything"].one("PrometheusRule")["spec"]
    text = ALERTS.read_text("utf-8")
    published = text.replace(RUNBOOKS, "https://wiki.example.org/resnet-serve")
    assert rules == yaml.safe_load(published)
    assert published != text
    # One file, which Helm packs.
    assert (CHART / "alerts.yml").resolve() == ALERTS


def test_without_an_address_of_the_runbook_alerts_have_no_link() -> None:
    (rendered,) = render({"prometheusRule": {"enabled": True}})
    rules = rendered.one("PrometheusRule")["spec"]
    expected = yaml.safe_load(ALERTS.read_text("utf-8"))
    for group in expected["groups"]:
        for rule in group["rules"]:
            rule.get("annotations", {}).pop("runbook_url", None)
    assert rules == expected


def test_prometheus_finds_pods_under_the_name_that_alerts_ask_for(
    charts: dict[str, Rendered],
) -> None:
    monitor = charts["everything"].one("ServiceMonitor")["spec"]
    service = charts["everything"].one("Service")
    labels = service["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert f'job="{labels[monitor["jobLabel"]]}"' in ALERTS.read_text("utf-8")
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint["scheme"] == "https"


def test_pods_are_scraped_once(charts: dict[str, Rendered]) -> None:
    for name in SETS:
        kinds = {each["kind"] for each in charts[name].documents}
        template = charts[name].one("Deployment")["spec"]["template"]
        annotated = "prometheus.io/scrape" in template["metadata"]["annotations"]
        assert annotated is not ("ServiceMonitor" in kinds)


def adapter_rule() -> dict[str, Any]:
    (rule,) = yaml.safe_load(ADAPTER.read_text("utf-8"))["rules"]["custom"]
    assert isinstance(rule, dict)
    return rule


def test_the_adapter_gives_the_metric_that_the_autoscaler_asks_for(
    charts: dict[str, Rendered],
) -> None:
    rule = adapter_rule()
    (asked, _) = charts["everything"].one("HorizontalPodAutoscaler")["spec"]["metrics"]
    name = asked["pods"]["metric"]["name"]
    assert rule["name"]["as"] == name
    assert re.fullmatch(rule["name"]["matches"], rule["seriesQuery"].partition("{")[0])
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}


def test_the_adapters_query_adds_a_pods_models(tmp_path: Path) -> None:
    query = adapter_rule()["metricsQuery"]
    for placeholder, text in (
        ("<<.Series>>", "resnet_serve_queue_depth"),
        ("<<.LabelMatchers>>", 'namespace="n",pod=~"a|b"'),
        ("<<.GroupBy>>", "pod"),
    ):
        query = query.replace(placeholder, text)
    series = 'resnet_serve_queue_depth{{namespace="n",pod="{}",model="{}"}}'
    test = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": series.format("a", "x"), "values": "4x20"},
                    {"series": series.format("a", "y"), "values": "8x20"},
                    {"series": series.format("b", "x"), "values": "1x20"},
                    {"series": series.format("c", "x"), "values": "99x20"},
                ],
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": "3m",
                        "exp_samples": [
                            {"labels": '{pod="a"}', "value": 12},
                            {"labels": '{pod="b"}', "value": 1},
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "adapter_test.yml"
    path.write_text(yaml.safe_dump(test))
    promtool("test", "rules", path)
