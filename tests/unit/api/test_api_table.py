"""The table of operations, its description and its errors agree with each other."""

import re
from dataclasses import fields
from typing import Any, cast

import pytest

from nuage import errors
from nuage.api.dispatch import decode_body
from nuage.api.errors import STATUS, document_of, status_of
from nuage.api.openapi import openapi_document
from nuage.errors import InvalidRequest, NuageError
from nuage.iaas.doors import TABLE
from nuage.iaas.operations import Operation
from nuage.trust.permissions import TABLE as PERMISSIONS

OPERATIONS = TABLE.all()
IDS = [operation.name for operation in OPERATIONS]
SAMPLES: tuple[NuageError, ...] = (
    errors.InvalidRequest("no", field="name"),
    errors.NotFound("vm", "web"),
    errors.Conflict("changed", revision=7),
    errors.StaleEpoch("moved on", epoch=3),
    errors.Forbidden("no"),
    errors.Unauthenticated("who?"),
    errors.SovereigntyViolation("no", rule="data_countries"),
    errors.NoCandidate("none", refusals=[("n1", "memory", "full")]),
    errors.QuotaExceeded("VMs", limit=1, used=1, asked=1),
    errors.Unavailable("later", retry_after_s=2.0),
    errors.SiteUnreachable("lyon", doing="stop"),
    errors.Locked("the key is not here"),
    errors.Moving("the head of disk-1 is being opened"),
    errors.Lost("it is on no disk any more"),
    errors.TimedOut("stop", after_s=1.0),
    errors.LocalProtocolError("ours"),
    errors.RemoteProtocolError("theirs"),
    errors.CorruptData("bad", where="journal"),
)  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_an_operation_is_described_as_it_is(operation: Operation[object, object]) -> None:
    described = cast(Any, openapi_document())["paths"][operation.path][operation.verb.lower()]
    known = {field.name for field in fields(cast(Any, operation.body))}
    in_path = set(re.findall(r"{(\w+)}", operation.path))
    assert in_path <= known, "a parameter of the path is no field"
    assert described["operationId"] == operation.name
    assert described["summary"]
    assert {p["name"] for p in described["parameters"] if p["in"] == "path"} == in_path
    assert str(operation.status) in described["responses"]
    rest = known - in_path
    shown = {p["name"] for p in described["parameters"] if p["in"] == "query"}
    if "requestBody" in described:
        schema = described["requestBody"]["content"]["application/json"]["schema"]
        shown |= set(schema["properties"])
    assert shown == rest


def test_every_operation_asks_for_an_action_that_exists() -> None:
    assert {operation.action for operation in OPERATIONS} <= set(PERMISSIONS)


def test_only_reads_are_gets_and_paths_are_unique() -> None:
    routes = [(operation.verb, operation.path) for operation in OPERATIONS]
    assert len(set(routes)) == len(routes)
    assert all(operation.path.startswith("/v1/") for operation in OPERATIONS)
    assert all(not op.is_read or op.status == 200 for op in OPERATIONS)


def all_errors(cls: type[NuageError] = NuageError) -> set[type[NuageError]]:
    found = {c for c in cls.__subclasses__() if c.__module__ == errors.__name__}
    return found | {more for c in found for more in all_errors(c)}


def test_every_error_has_a_sample_a_status_and_a_document() -> None:
    assert {type(sample) for sample in SAMPLES} == all_errors()
    for sample in SAMPLES:
        assert any(isinstance(sample, cls) for cls, _ in STATUS), type(sample)
        assert 400 <= status_of(sample) <= 504
        document = document_of(sample)
        assert document["code"] == sample.code
        assert document["message"] == sample.message


def test_a_subclass_is_answered_before_its_base() -> None:
    for index, (cls, _) in enumerate(STATUS):
        assert not any(issubclass(cls, earlier) for earlier, _ in STATUS[:index]), cls


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "iaas"),
        (b'{"iaas": 3, "vm": "web"}', "iaas"),
        (b"[]", ""),
        (b"{", ""),
        (b"\xff", ""),
        (b'{"iaas": "\xf6", "vm": "web"}', ""),
    ],
)
def test_a_body_that_does_not_fit_names_its_field(body: bytes, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_body(TABLE.get("vm.show"), body)
    assert refused.value.field == field


def test_a_field_deep_inside_is_named_with_its_path() -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_body(
            TABLE.get("iaas.create"), b'{"name": "x", "contract": {"quota": {"vm_count": -1}}}'
        )
    assert refused.value.field == "contract.quota.vm_count"
