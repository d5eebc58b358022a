"""Prometheus' and Grafana's files: that they are valid, and ask for metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.errors import REFUSALS, RequestError
from service.metrics import REASONS, Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
RUNBOOK = DEPLOY.parent / "docs/runbook.md"
COMPOSE = DEPLOY.parent / "docker-compose.yml"
# Prometheus adds these: for each target, and for each alert that is pending or firing.
BY_PROMETHEUS = {"up", "ALERTS"}
UNIT_TESTS = ("alerts_test.yml", "alerts_of_days_test.yml")
# Part of every Grafana.
CORE_PANELS = {"heatmap", "row", "stat", "state-timeline", "table", "timeseries"}


def exposed(exposition: str) -> set[str]:
    """The names a query can use, from the text that a service exposes."""
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.MULTILINE):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {name + part for part in parts}
    return found


def queried(expression: str) -> set[str]:
    """The names of metrics in a PromQL expression: what is no function, operator or label."""
    bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    names = set(re.findall(r"(?<![\w.:])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])", bare))
    return names - {"and", "or", "unless", "bool", "offset"}


def unknown(expression: str, names: set[str]) -> set[str]:
    """The metrics an expression asks for that are not among `names`."""
    return queried(expression) - names


@pytest.fixture(scope="module")
def names() -> set[str]:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    return exposed(Metrics().render().decode()) | recorded | BY_PROMETHEUS


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    path = DEPLOY / "grafana/dashboards/resnet-serve.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def load(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text("utf-8"))


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


def filled_in(expression: str) -> str:
    """The expression as Grafana would send it."""
    for variable, value in {"model": ".*", "instance": ".*", "__rate_interval": "20s"}.items():
        expression = expression.replace(f"${variable}", value)
    return expression


def rules() -> list[dict[str, Any]]:
    return [rule for group in load("prometheus/alerts.yml")["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def promtool(*arguments: str | Path, cwd: Path | None = None) -> None:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool, which comes with Prometheus, is not installed")
    done = subprocess.run(
        [found, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_are_read_from_an_exposition() -> None:
    text = "# HELP a_total x\n# TYPE a_total counter\na_total 1.0\n# TYPE b histogram\n"
    assert exposed(text) == {"a_total", "b_bucket", "b_sum", "b_count"}


@pytest.mark.parametrize(
    ("expression", "metrics"),
    [
        ('sum by (le, x) (rate(a_bucket{b="c", d=~"$e|"}[$__rate_interval]))', {"a_bucket"}),
        ("a{b='c'} / on (job) d > 0.5 or vector(0)", {"a", "d"}),
        ('histogram_quantile(0.99, sum(rate(a_bucket{x="}"}[5m])) by (le))', {"a_bucket"}),
    ],
)
def test_names_are_read_from_an_expression(expression: str, metrics: set[str]) -> None:
    assert queried(expression) == metrics


def test_the_dashboard_asks_for_metrics_that_exist(
    dashboard: dict[str, Any], names: set[str]
) -> None:
    for expression in expressions(dashboard):
        assert not unknown(filled_in(expression), names), expression


def test_the_dashboard_shows_every_metric_of_the_service(
    dashboard: dict[str, Any], names: set[str]
) -> None:
    def families(names: set[str]) -> set[str]:
        return {re.sub("_(bucket|sum|count)$", "", name) for name in names}

    shown = set().union(*map(queried, expressions(dashboard)))
    assert {name for name in families(names) if name.startswith("resnet_serve_")} <= families(shown)


def test_alerts_ask_for_metrics_that_exist(names: set[str]) -> None:
    assert alerts()
    for rule in rules():
        assert not unknown(rule["expr"], names), rule["expr"]


def test_whoever_is_woken_is_told_what_to_look_at() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "runbook", "runbook_url"}


def anchors(markdown: str) -> list[str]:
    """The fragments by which forges link to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_each_alert_leads_to_its_entry_in_the_runbook() -> None:
    text = RUNBOOK.read_text("utf-8")
    found = anchors(text)
    for rule in alerts():
        place, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert place == f"https://runbooks.example/resnet-serve/{RUNBOOK.name}"
        assert anchor == rule["alert"].lower()
        assert found.count(anchor) == 1
    for link in re.findall(r"\]\(#([^)]+)\)", text):
        assert link in found


def test_the_runbook_has_an_entry_for_each_alert_and_no_other() -> None:
    entries = re.split(r"^### (ResnetServe\w+)$", RUNBOOK.read_text("utf-8"), flags=re.MULTILINE)
    names, texts = entries[1::2], entries[2::2]
    assert sorted(names) == sorted(rule["alert"] for rule in alerts())
    for name, entry in zip(names, texts, strict=True):
        asked = re.findall(r"^- \*\*(.+?)\*\*: \S", entry, re.MULTILINE)
        assert asked == ["Means", "Look at", "Do"], name


def test_the_runbook_names_panels_that_exist(dashboard: dict[str, Any]) -> None:
    titles = {panel["title"] for panel in dashboard["panels"]}
    rows = re.findall(r"Dashboard, ([A-Z][^:;.`]*)", " ".join(RUNBOOK.read_text("utf-8").split()))
    assert len(rows) > 10
    for row in rows:
        first = row.split(", over")[0]
        for name in re.split(r", (?=[A-Z])| and (?=[A-Z])", first):
            assert name.strip(" ,") in titles, row


def test_the_objectives_of_alerts_and_panels_are_the_services_settings(
    dashboard: dict[str, Any],
) -> None:
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    assert "resnet_serve_slo_availability_ratio" in recorded["resnet_serve:refused:budget"]
    assert "resnet_serve_slo_latency_ratio" in recorded["resnet_serve:slow:budget"]
    for rule in alerts():
        if "Budget" in rule["alert"]:
            compared = rule["expr"].count("ratio_rate")
            assert rule["expr"].count("* resnet_serve:refused:budget") == compared
    goals = {
        target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        if target["legendFormat"] == "goal"
    }
    assert len(goals) == 3
    assert all("resnet_serve_slo_" in goal for goal in goals)


def test_own_reasons_for_refusals_exist() -> None:
    text = (DEPLOY / "prometheus/alerts.yml").read_text("utf-8")
    for reasons in re.findall(r'reason=~"([^"]*)"', text):
        assert set(reasons.split("|")) <= set(REASONS)


def test_every_alert_is_seen_to_fire_and_to_keep_silent() -> None:
    firing, silent = set[str](), set[str]()
    for path in UNIT_TESTS:
        tests = yaml.safe_load((Path(__file__).parent / path).read_text("utf-8"))["tests"]
        for check in [check for test in tests for check in test["alert_rule_test"]]:
            (firing if check.get("exp_alerts") else silent).add(check["alertname"])
    assert firing == silent == {rule["alert"] for rule in alerts()}


def test_prometheus_scrapes_the_service_every_5_seconds() -> None:
    config = load("prometheus/prometheus.yml")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["resnet-serve:8000"]}]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert config["global"]["scrape_interval"] == "5s"


def test_prometheus_finds_no_fault() -> None:
    promtool("check", "config", DEPLOY / "prometheus/prometheus.yml")


@pytest.mark.parametrize(
    "path", [UNIT_TESTS[0], pytest.param(UNIT_TESTS[1], marks=pytest.mark.slow)]
)
def test_alerts_fire_when_they_should(path: str) -> None:
    promtool("test", "rules", path, cwd=Path(__file__).parent)


def test_prometheus_parses_the_dashboards_expressions(
    dashboard: dict[str, Any], tmp_path: Path
) -> None:
    panels = [
        {"record": f"panel:{number}", "expr": filled_in(expression)}
        for number, expression in enumerate(expressions(dashboard))
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": panels}]}))
    promtool("check", "rules", path)


def test_grafana_asks_this_prometheus() -> None:
    (source,) = load("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["isDefault"] is True
    interval = load("prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


def test_grafana_finds_the_dashboard() -> None:
    (provider,) = load("grafana/provisioning/dashboards/resnet-serve.yml")["providers"]
    folder = provider["options"]["path"]
    grafana = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]["grafana"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in grafana["volumes"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(f"{folder}/")
    assert (DEPLOY / "grafana/dashboards" / Path(home).name).exists()


def test_the_dashboard_needs_no_plugin(dashboard: dict[str, Any]) -> None:
    assert {panel["type"] for panel in dashboard["panels"]} <= CORE_PANELS
    for panel in dashboard["panels"]:
        for user in (panel, *panel.get("targets", [])):
            if panel["type"] != "row":
                assert user["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_panel_follows_the_chosen_instance(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        selectors = re.findall(r"\b[a-zA-Z_:]+\{[^}]*\}", expression)
        assert selectors, expression
        for selector in selectors:
            assert 'instance=~"$instance' in selector, expression


def test_requests_leave_out_who_only_looks_after_the_service(dashboard: dict[str, Any]) -> None:
    (panel,) = [panel for panel in dashboard["panels"] if panel["title"] == "Requests"]
    (pattern,) = re.findall(r'route!~"([^"]*)"', panel["targets"][0]["expr"])
    left_out = ["/metrics", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"]
    left_out += ["/ping", "/v2/models/{name}/ready", "grpc Check", "grpc ServerReady"]
    assert all(re.fullmatch(pattern, route) for route in left_out)
    for route in (
        "/v1/classify",
        "/v2/models/{name}/infer",
        "/v1/models",
        "other",
        "grpc ModelInfer",
    ):
        assert not re.fullmatch(pattern, route)


def test_models_can_be_chosen(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables.keys() == {"datasource", "model", "instance"}
    for name in ("model", "instance"):
        assert variables[name]["multi"] is True
        assert variables[name]["includeAll"] is True


def test_alerts_and_traces_are_marked(dashboard: dict[str, Any]) -> None:
    marks = [each["expr"] for each in dashboard["annotations"]["list"] if "expr" in each]
    assert [queried(expression) for expression in marks] == [{"ALERTS"}]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            if panel["type"] == "timeseries" and "histogram_quantile" in target["expr"]:
                assert target["exemplar"] is True, panel["title"]


def test_panels_have_their_own_id_and_place(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


def test_panels_of_numbers_have_a_unit(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        if panel["type"] in ("stat", "timeseries"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] == "heatmap":
            assert panel["options"]["yAxis"]["unit"], panel["title"]


def test_times_are_in_seconds_and_show_their_tail(dashboard: dict[str, Any]) -> None:
    quantiles = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            found = re.match(r"histogram_quantile\(([\d.]+), sum by \(le, phase\)", target["expr"])
            if found:
                quantiles.add(found[1])
                assert panel["fieldConfig"]["defaults"]["unit"] == "s"
    assert quantiles == {"0.5", "0.95", "0.99"}


def test_what_a_client_chooses_burns_no_budget(dashboard: dict[str, Any]) -> None:
    """The reasons that remain are of the service, or of all its load together."""
    chosen = {"client_deadline", "deadline_too_short", "caller_left", "request_too_slow"}
    client_errors = {kind.reason for kind in REFUSALS if issubclass(kind, RequestError)}
    text = (DEPLOY / "prometheus/alerts.yml").read_text("utf-8")
    own = [set(each.split("|")) for each in re.findall(r'reason=~"([^"]*)"', text)]
    assert own
    for expression in expressions(dashboard):
        own += [set(each.split("|")) for each in re.findall(r'reason=~"(\w[^"$]*)"', expression)]
    for reasons in own:
        assert reasons == set(REASONS) - chosen - client_errors


def test_a_few_refusals_in_little_traffic_fire_no_alert() -> None:
    """Each window of a ratio that an alert compares with a budget has a minimum of refusals."""
    slow = next(rule for rule in alerts() if rule["alert"] == "ResnetServeSlow")
    assert "resnet_serve:slow:rate5m * 300 >= 10" in slow["expr"]
    seconds = {"5m": 300, "1h": 3600, "6h": 21600, "1d": 86400}
    compared = set()
    for rule in alerts():
        windows = re.findall(r"refused:ratio_rate(\w+)", rule["expr"])
        least = re.findall(r"refused:rate(\w+) \* (\d+) >= 10", rule["expr"])
        assert all(seconds[window] == int(factor) for window, factor in least)
        # The longer window of each pair has them.
        assert len(windows) <= 2 * len(least), rule["alert"]
        compared |= {window for window, _ in least}
    assert compared == set(seconds)


def test_a_target_that_vanished_is_noticed() -> None:
    (rule,) = [rule for rule in alerts() if rule["expr"].startswith("absent(up{")]
    assert rule["labels"]["severity"] == "critical"
