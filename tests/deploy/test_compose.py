"""docker-compose.yml: two variants of the service, confined, with monitoring beside them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.compose import variables
from service.config import keys, loading
from service.config.loading import MODEL_WIDE
from service.config.settings import Settings
from service.config.variables import PREFIX
from service.errors import ConfigError
from tests.deploy import compose
from tests.deploy.test_image import one, stages

ROOT = compose.ROOT
VARIANTS = {"gpu": "service-gpu", "cpu": "service-cpu"}
MONITORING = {"prometheus": "/prometheus", "grafana": "/var/lib/grafana"}
ALL = (*VARIANTS.values(), *MONITORING, "alertmanager")
SETTINGS = [f"{PREFIX}{name.upper()}" for name in ("config", *Settings.model_fields, *MODEL_WIDE)]
EXAMPLE = (ROOT / "config/service.env.example").read_text("utf-8")


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = compose.content()["services"]
    return found


@pytest.fixture
def plain() -> dict[str, Any]:
    """The file where no variable is set."""
    found: dict[str, Any] = compose.filled_in(compose.content(), {})
    return found


def test_plain_up_is_the_gpu() -> None:
    lines = (ROOT / ".env").read_text("utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == ["COMPOSE_PROFILES=gpu"]


def test_a_profile_chooses_the_variant_and_another_adds_alertmanager(
    services: dict[str, Any],
) -> None:
    profiles = {name: each["profiles"] for name, each in services.items() if "profiles" in each}
    variants = {name: [profile] for profile, name in VARIANTS.items()}
    assert profiles == variants | {"alertmanager": ["alerts"]}
    assert services.keys() == set(ALL)


def test_variants_differ_in_device_image_and_memory_only(plain: dict[str, Any]) -> None:
    gpu, cpu = (plain["services"][name] for name in VARIANTS.values())
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"][0]) == ("nvidia", "gpu")
    assert device["count"] == "all"  # The setting `device` chooses among them.
    assert "deploy" not in cpu
    # A lost GPU is an error.
    only = compose.environment(gpu).items() - compose.environment(cpu).items()
    assert only == {(f"{PREFIX}DEVICE", "cuda")}
    assert compose.environment(cpu).items() <= compose.environment(gpu).items()
    assert (gpu["build"]["args"]["DEVICE"], cpu["build"]["args"]["DEVICE"]) == ("cuda", "cpu")
    assert gpu["image"] != cpu["image"]
    own = {"profiles", "image", "build", "deploy", "env_file", "mem_limit"}
    assert {k: v for k, v in gpu.items() if k not in own} == {
        k: v for k, v in cpu.items() if k not in own
    }


@pytest.mark.parametrize("name", ALL)
def test_each_is_confined_local_and_bounded(plain: dict[str, Any], name: str) -> None:
    service = plain["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["logging"]["driver"] == "json-file"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    # Compose takes options of a log for texts only.
    assert all(isinstance(each, str) for each in service["logging"]["options"].values())


@pytest.mark.parametrize("name", VARIANTS.values())
def test_a_service_is_given_what_it_needs(plain: dict[str, Any], name: str) -> None:
    service = plain["services"][name]
    assert service["networks"]["default"]["aliases"] == ["resnet-serve"]
    assert service["pids_limit"] > 0
    assert service["init"] is True
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    settings = Settings()
    needed = settings.shutdown_grace_s + settings.shutdown_timeout_s
    assert int(service["stop_grace_period"].removesuffix("s")) > needed


def test_the_list_of_variables_is_complete() -> None:
    assert variables.FILE.read_text("utf-8") == variables.written(), (
        "python -m deploy.kubernetes.settings_schema"
    )


@pytest.mark.parametrize("name", VARIANTS.values())
def test_every_setting_can_be_set_without_an_edit_of_a_tracked_file(
    services: dict[str, Any], name: str
) -> None:
    service = services[name]
    assert "environment" not in service  # It would be above all files.
    own = {variable: f"own-{variable}" for variable in SETTINGS}
    text = "".join(f"{variable}={value}\n" for variable, value in own.items())
    shell = dict.fromkeys(SETTINGS, "of-the-shell")
    assert own.items() <= compose.environment(service, text, shell).items()
    # What is not set outside must not be empty inside.
    told = compose.environment(service)
    assert told.keys() - SETTINGS == {"TMPDIR"}
    assert all(told.values())
    assert loading.read(environ=told).problems == []


@pytest.mark.parametrize("name", VARIANTS.values())
def test_the_shell_and_dotenv_reach_every_setting_but_those_of_the_container(
    services: dict[str, Any], name: str
) -> None:
    shell = dict.fromkeys(SETTINGS, "x")
    reached = compose.environment(services[name], variables=shell)
    missed = {variable for variable in SETTINGS if reached.get(variable) != "x"}
    assert missed == {f"{PREFIX}{each}" for each in ("HOST", "PORT", "CACHE_DIR")}
    assert reached[f"{PREFIX}CACHE_DIR"] == "/cache"


def test_every_variable_of_the_file_is_explained() -> None:
    text = "\n".join(
        line
        for line in compose.FILE.read_text("utf-8").splitlines()
        if not line.lstrip().startswith("#")
    )
    assert {match[1] for match in compose.VARIABLE.finditer(text)} == compose.documented()


def example_lines() -> list[str]:
    return re.findall(r"^#([A-Z_]+=.*)$", EXAMPLE, re.MULTILINE)


@pytest.mark.parametrize("line", example_lines())
def test_each_line_of_the_example_is_a_setting_that_the_service_takes(
    line: str, tmp_path: Path
) -> None:
    (name, value), *_ = compose.read(line, {}).items()
    if name == "HF_TOKEN":
        assert name in variables.OTHERS
        return
    for file in re.findall(r"/(?:config|run/secrets)/([\w.-]+)", value):
        (tmp_path / file).write_text("" if file.endswith(".yaml") else "0123456789abcdef\n")
        (tmp_path / file).chmod(0o400)
    here = re.sub(r"/(config|run/secrets)/", f"{tmp_path}/", value)
    problems = loading.read(environ={name: here}).problems
    assert not [each for each in problems if "must be unset without" not in each]


def test_the_example_is_read_as_it_is() -> None:
    assert compose.read(EXAMPLE, {}) == {}
    assert compose.OWN == "config/service.env"
    assert f"Copy this to {compose.OWN}" in EXAMPLE


def ignored(*paths: str) -> set[str]:
    """Those that git ignores."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs a checkout and git")
    done = subprocess.run(
        [git, "check-ignore", "--no-index", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return set(done.stdout.split())


def test_git_ignores_what_users_write() -> None:
    theirs = {
        compose.OWN,
        "config/compose.env",
        "config/serve.yaml",
        "config/alertmanager/alertmanager.yml",
        "bundles/cats.safetensors",
        "docker-compose.override.yml",
    }
    tracked = {"bundles/README.md", "config/README.md", "config/service.env.example", ".env"}
    assert ignored(*theirs, *tracked) == theirs


@pytest.mark.parametrize("name", VARIANTS.values())
def test_a_service_is_open_to_all_only_where_nobody_else_reaches_it(
    services: dict[str, Any], plain: dict[str, Any], name: str
) -> None:
    http, grpc = services[name]["ports"]
    assert http.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:")
    assert grpc.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:")
    assert plain["services"][name]["ports"] == ["127.0.0.1:8000:8000", "127.0.0.1::8001"]
    assert compose.environment(services[name])[f"{PREFIX}ALLOW_ANONYMOUS"] == "true"
    shut = {f"{PREFIX}ALLOW_ANONYMOUS": "false"}
    assert compose.environment(services[name], variables=shut).items() >= shut.items()


@pytest.mark.parametrize("name", VARIANTS.values())
def test_keys_may_be_files_and_need_not(plain: dict[str, Any], name: str) -> None:
    secrets = plain["secrets"]
    assert plain["services"][name]["secrets"] == list(secrets)
    for each in secrets.values():
        with pytest.raises(ConfigError):  # It has none, should a setting name it nevertheless.
            keys.read(ROOT / each["file"])
        assert (ROOT / each["file"]).is_file()  # Compose starts nothing where it is missing.
    assert f"{PREFIX}API_KEYS_FILE" not in compose.environment(plain["services"][name])
    assert "RESNET_SERVE_API_KEYS_FILE=/run/secrets/api-keys" in example_lines()
    given = {"API_KEYS_SECRET": "/etc/keys"}
    named = compose.filled_in(compose.content(), given)["secrets"]
    assert named["api-keys"] == {"file": "/etc/keys"}


@pytest.mark.parametrize("name", VARIANTS.values())
def test_a_service_keeps_its_cache_in_a_volume(services: dict[str, Any], name: str) -> None:
    told = compose.environment(services[name])
    assert f"service-cache:{told[f'{PREFIX}CACHE_DIR']}" in services[name]["volumes"]


@pytest.mark.parametrize("name", VARIANTS.values())
def test_users_folders_are_mounted_read_only(services: dict[str, Any], name: str) -> None:
    mounted = set(services[name]["volumes"])
    assert {"./bundles:/bundles:ro", "./config:/config:ro"} <= mounted


@pytest.mark.parametrize("name", VARIANTS.values())
def test_nothing_can_be_executed_but_in_volumes(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert all("exec" not in mount.split(",") for mount in service["tmpfs"])
    # What a compiled engine unpacks there, it loads.
    mounted = [volume.split(":")[1] for volume in service["volumes"]]
    assert compose.environment(service)["TMPDIR"] in mounted


def test_the_image_for_cpus_has_no_cuda_unless_it_is_asked_for() -> None:
    def index(**given: str) -> str:
        services = compose.filled_in(compose.content(), given)["services"]
        found: str = services["service-cpu"]["build"]["args"]["TORCH_INDEX_URL"]
        return found

    assert index() == "https://download.pytorch.org/whl/cpu"
    assert index(CPU_TORCH_INDEX_URL="") == ""
    assert index(CPU_TORCH_INDEX_URL="https://here") == "https://here"


def test_the_driver_gives_the_same_libraries_with_and_without_compose(
    services: dict[str, Any],
) -> None:
    (device,) = services["service-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    found = one(stages((ROOT / "Dockerfile").read_text("utf-8"))[-1], "ENV")
    words = dict(word.split("=", 1) for word in found.split())
    assert words["NVIDIA_DRIVER_CAPABILITIES"].split(",") == device["capabilities"][1:]
    assert words["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # NVML's order.


@pytest.mark.parametrize(("name", "data"), [*MONITORING.items(), ("alertmanager", "/alertmanager")])
def test_monitoring_is_pinned_and_keeps_its_data(
    services: dict[str, Any], name: str, data: str
) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"])
    assert f"{name}-data:{data}" in services[name]["volumes"]


def test_prometheus_finds_alertmanager_where_there_is_one(plain: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    (manager,) = config["alerting"]["alertmanagers"]
    # A name that does not resolve is no Alertmanager; a fixed address would be one that is down.
    (looked_up,) = manager["dns_sd_configs"]
    (name,) = looked_up["names"]
    (port,) = plain["services"][name]["ports"]
    assert port == f"127.0.0.1:{looked_up['port']}:{looked_up['port']}"


def test_prometheus_asks_a_service_with_a_certificate_by_https_and_differs_in_nothing_else() -> (
    None
):
    folder = ROOT / "deploy/prometheus"
    plain, encrypted = (
        yaml.safe_load((folder / name).read_text("utf-8"))
        for name in ("prometheus.yml", "prometheus-https.yml")
    )
    (job,) = encrypted["scrape_configs"]
    assert job.pop("scheme") == "https"
    assert job.pop("tls_config") == {"insecure_skip_verify": True}
    assert encrypted == plain


def test_what_is_mounted_exists(plain: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0]
        for service in plain["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert {"./bundles", "./config", "./deploy/alertmanager"} <= set(mounted)
    assert all((ROOT / path).is_dir() for path in mounted)


def test_alertmanager_finds_no_fault_and_mutes_alerts_that_exist() -> None:
    path = ROOT / "deploy/alertmanager/alertmanager.yml"
    rules = (ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8")
    named = set(re.findall(r"ResnetServe\w+", path.read_text("utf-8")))
    assert named <= set(re.findall(r"alert: (\w+)", rules))
    if amtool := shutil.which("amtool"):
        done = subprocess.run(
            [amtool, "check-config", path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def ask(*arguments: str, **environ: str) -> str:
    """What Compose itself says."""
    program = compose.program()
    if program is None:
        pytest.skip("Compose is not installed")
    done = subprocess.run(
        [*program, *arguments],
        cwd=ROOT,
        env=compose.clean(**environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"service-gpu", *MONITORING}),
        (["--profile", "cpu"], {"service-cpu", *MONITORING}),
        (["--profile", "cpu", "--profile", "alerts"], {*ALL} - {"service-gpu"}),
    ],
    ids=["gpu", "cpu", "cpu and alerts"],
)
def test_compose_itself_starts_that_variant(flags: list[str], expected: set[str]) -> None:
    assert set(ask(*flags, "config", "--services").split()) == expected


def test_compose_itself_reads_the_variables_as_these_tests_do(services: dict[str, Any]) -> None:
    if (ROOT / compose.OWN).exists():
        pytest.skip(f"{compose.OWN} is there")
    shell = {f"{PREFIX}LOG_FORMAT": "json", f"{PREFIX}DEVICE": "cuda:1", f"{PREFIX}PORT": "1"}
    said = json.loads(ask("--profile", "*", "config", "--format", "json", **shell))["services"]
    for name in VARIANTS.values():
        expected = compose.environment(services[name], variables=shell)
        assert said[name]["environment"] == expected


def test_compose_itself_reads_a_file_of_variables_beside_the_tracked_one(tmp_path: Path) -> None:
    own = tmp_path / "compose.env"
    own.write_text("COMPOSE_PROFILES=cpu,alerts\nPUBLISH_PORT=9000\nMEMORY_LIMIT=3g\n")
    text = ask("config", "--format", "json", COMPOSE_ENV_FILES=f".env,{own}")
    said = json.loads(text)["services"]
    assert said.keys() == {*ALL} - {"service-gpu"}
    service = said["service-cpu"]
    assert service["ports"][0]["published"] == "9000"
    assert int(service["mem_limit"]) == 3 * 2**30
