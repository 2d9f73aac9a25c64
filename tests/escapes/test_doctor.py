"""What the doctor says of machines that lack a layer: which, why, and what to do."""

from __future__ import annotations

import json

import pytest
from environments import Environment, machines, run_in

REASONS = {"landlock": "older than 5.13", "mount_namespace": "unshare", "net_namespace": "unshare"}


@pytest.mark.parametrize("environment", machines("nobody, no namespaces"))
def test_the_doctor_says_what_is_missing_and_why(environment: Environment) -> None:
    found = json.loads(run_in(environment, "ask_the_doctor"))
    layers = {each["name"]: each for each in found["layers"]}
    assert {name for name, each in layers.items() if not each["is_active"]} == environment.missing
    for name in environment.missing:
        assert REASONS[name] in layers[name]["reason"]
    kinds = {each["name"]: each for each in found["kinds"]}
    assert found["is_well"] == kinds["contained"]["works"] == ("landlock" not in environment.missing)
    if "landlock" in environment.missing:
        assert "without landlock it does not start" in kinds["contained"]["detail"]
