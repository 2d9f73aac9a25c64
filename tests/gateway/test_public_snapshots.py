"""What others rely on stays: the public names, the OpenAPI document, the configuration."""

from __future__ import annotations

import json

import pytest
import snapshots


@pytest.mark.parametrize("name", list(snapshots.SNAPSHOTS))
def test_nothing_that_others_rely_on_is_gone_or_changed(name: str) -> None:
    former = json.loads((snapshots.FOLDER / f"{name}.json").read_text())
    found = snapshots.breaks(former, json.loads(snapshots.text_of(snapshots.SNAPSHOTS[name]())))
    if found:
        pytest.fail(f"{name}: {'; '.join(found[:5])}; {snapshots.RENEW}", pytrace=False)


def test_a_breaking_change_is_seen_and_an_addition_is_none() -> None:
    former = {
        "server": {"port": {"type": "integer", "default": 3000}},
        "body": {"properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]},
        "Gateway": {"serve": {"parameters": {"port": ""}, "required": ["port"]}},
    }

    def changed(**more: object) -> list[str]:
        return snapshots.breaks(former, {**former, **more})

    body = {"properties": {"a": {"type": "string"}, "b": {}, "c": {}}, "required": ["a"]}
    assert changed() == changed(more={"x": 1}) == changed(body=body) == []
    assert changed(body={**body, "required": []}) == []
    optional = {"serve": {"parameters": {"port": "", "more": "1"}, "required": ["port"]}}
    assert changed(Gateway=optional) == []
    assert changed(new={"properties": {"x": {}}, "required": ["x"]}) == []
    for breaking in (
        {"server": {"port": {"type": "integer", "default": 80}}},
        {"server": {"port": {"type": "string", "default": 3000}}},
        {"server": {}},
        {"body": {**body, "required": ["a", "c"]}},
        {"body": {"properties": {"a": {"type": "string"}}, "required": ["a"]}},
        {"Gateway": {"serve": {"parameters": {"port": "", "more": ""}, "required": ["port", "more"]}}},
        {"Gateway": {"serve": {"parameters": {"place": ""}, "required": ["place"]}}},
        {"Gateway": {}},
    ):
        assert changed(**breaking), breaking


def test_what_must_be_sent_may_become_less_and_what_is_promised_more() -> None:
    sent, given = {"required": ["a"]}, {"required": ["x"]}

    def described(sent: object, given: object) -> dict[str, object]:
        body = {"schema": {"$ref": "#/components/schemas/Sent"}}
        return {"post": {"requestBody": body}, "components": {"schemas": {"Sent": sent, "Given": given}}}

    former = described(sent, given)
    more, less = {"required": ["a", "x"]}, {"required": []}
    assert snapshots.breaks(former, described(less, more)) == []
    assert snapshots.breaks(former, described(more, given)) == [".components.schemas.Sent.required[x] is new"]
    assert snapshots.breaks(former, described(sent, less))
