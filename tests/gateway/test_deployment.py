"""The files of ``examples/deploy/``: they parse, and name what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from gateways import RunningGateway
from prometheus_client.parser import text_string_to_metric_families
from support import ROOT

DEPLOY = ROOT / "examples" / "deploy"
_METRIC = re.compile(r"\b(?:tr|process)_\w+")
_PARTS = re.compile(r'"[^"]*"|\{\{.*?\}\}')  # of an expression, that name no metric


def unit() -> dict[str, list[str]]:
    """The settings of the service, each with its values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "tr-mmap.service").read_text().splitlines():
        name, has_value, value = line.partition("=")
        if has_value and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_the_service_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("NOT TESTED: there is no systemd-analyze here")
    text = (DEPLOY / "tr-mmap.service").read_text()
    path = tmp_path / "tr-mmap.service"
    path.write_text(text.replace("/opt/tr-mmap/bin/tr-mmap", sys.executable))  # it must be there
    told = subprocess.run([program, "verify", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stderr) == (0, "")


def test_the_service_may_make_the_calls_of_a_sandbox() -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("NOT TESTED: there is no systemd-analyze here")

    def calls(names: str) -> set[str]:
        found: set[str] = set()
        for name in names.split():
            if not name.startswith("@"):
                found.add(name)
                continue
            listed = subprocess.run([program, "syscall-filter", name], capture_output=True, text=True, check=True)
            inside = [line.strip() for line in listed.stdout.splitlines()[1:] if not line.strip().startswith("#")]
            found |= calls(" ".join(inside))
        return found

    allowed, refused = unit()["SystemCallFilter"]
    needed = """
    landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp prctl prlimit64 memfd_create pidfd_open
    pidfd_send_signal unshare mount open_tree move_mount mount_setattr pivot_root umount2 clone clone3 sendmsg recvmsg
    socketpair sched_setaffinity fcntl mmap mremap madvise futex
    """
    assert set(needed.split()) - (calls(allowed) - calls(refused.removeprefix("~"))) == set()


def test_the_service_has_no_privileges_and_ends_well() -> None:
    found = unit()
    assert found["User"] == ["tr-mmap"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["NoNewPrivileges"] == found["PrivateTmp"] == found["ProtectHome"] == ["yes"]
    assert found["ProtectSystem"] == ["strict"]
    assert found["KillMode"] == ["mixed"]  # SIGTERM to all would end the runs
    assert "MemoryDenyWriteExecute" not in found  # WebAssembly is compiled to memory


def test_the_container_is_not_root_and_installs_what_there_is() -> None:
    steps = re.sub(r"\\\n", " ", (DEPLOY / "Containerfile").read_text())
    said = [line.split(maxsplit=1) for line in steps.splitlines() if line and not line.startswith("#")]
    assert all(len(each) == 2 for each in said)
    last = dict(said)  # the later one of each
    uid, _, gid = last["USER"].partition(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert last["ENTRYPOINT"] == '["tr-mmap"]'
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "/healthz" in last["HEALTHCHECK"]
    assert all(":" in value and not value.endswith(":latest") for name, value in said if name == "FROM")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "/source[${EXTRAS}]" in steps
    extras = project["optional-dependencies"]
    assert last["ARG"] == "EXTRAS=gateway"
    named = re.findall(r"gateway,(\w+)", steps + (ROOT / "docs" / "gateway-deployment.md").read_text())
    assert {"gateway", *named} <= extras.keys()
    assert {"torch", "onnx", "sandbox"} <= {*named}
    assert "tr-mmap" in project["scripts"]
    for path in re.findall(r"/source/([\w./]+)", steps):
        assert (ROOT / path).exists()


def test_the_page_lists_every_metric_with_its_kind_and_labels(gateway: RunningGateway) -> None:
    gateway.execute(code="output = 1")
    gateway.ask("POST", "/api/v1/python/execute", {"code": "1 / 0"})
    gateway.ask("POST", "/api/v1/python/execute", {"code": "1"}, token="none")
    found = {}
    for family in text_string_to_metric_families(gateway.ask("GET", "/metrics", scopes=("metrics",)).text):
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for each in family.samples for label in each.labels if label != "le"}
        found[name] = (family.type, labels)
    page = (ROOT / "docs" / "gateway-deployment.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`(?:tr|process)_[^|]*) \| (\w+)([^|]*) \|", page, re.MULTILINE)
    listed = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for names, kind, labels in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    assert listed == found


def test_every_metric_of_the_alert_rules_is_there(gateway: RunningGateway) -> None:
    gateway.execute(code="output = 1")
    gateway.ask("POST", "/api/v1/python/execute", {"code": "1 / 0"})
    lines = gateway.ask("GET", "/metrics", scopes=("metrics",)).text.splitlines()
    there = {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}
    rules = [each for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for each in group["rules"]]
    assert len({each["alert"] for each in rules}) == len(rules) >= 8
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "action"}
        named = set(_METRIC.findall(_PARTS.sub("", rule["expr"])))
        assert named or "up{" in rule["expr"]
        assert named <= there, rule["alert"]
    text = (DEPLOY / "alerts.yml").read_text()
    routes = re.findall(r'route="([^"]+)"', text)
    assert all(any(f'route="{route}"' in line for line in lines) for route in routes)
