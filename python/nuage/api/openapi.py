"""OpenAPI 3.1 of the REST API, read off the table of operations and the list of other doors."""

import re
from typing import Final, cast

import msgspec

from nuage import __version__
from nuage.api.doors import DOORS, JSON, Door
from nuage.iaas.doors import TABLE
from nuage.iaas.operations import Operation

_PARAMETER: Final = re.compile(r"{(\w+)}")
_REF: Final = "#/components/schemas/{name}"
_ERRORS: Final = {
    "400": "the request is wrong; `error.field` names where",
    "401": "no token, or not a valid one",
    "403": "the caller's roles do not allow it",
    "404": "no such object, here or at any site known",
    "409": "somebody else changed it first, or its state forbids it",
    "422": "a contract or a quota forbids it, or every candidate refused",
    "503": "the home site cannot be reached now",
    "504": "no answer came in time: whether it was done is not known",
}


def openapi_document() -> dict[str, object]:
    """Return the whole description as a JSON-ready document."""
    operations = TABLE.all()
    types = [t for operation in operations for t in (operation.body, operation.result)]
    types += [cast(type, t) for d in DOORS for t in (d.body, d.result) if _is_type(t)]
    schemas, components = msgspec.json.schema_components(cast(list[type], types), ref_template=_REF)
    paths: dict[str, dict[str, object]] = {}
    for index, operation in enumerate(operations):
        body, result = schemas[2 * index], schemas[2 * index + 1]
        paths.setdefault(operation.path, {})[operation.verb.lower()] = _described(
            operation, _resolved(body, components), result
        )
    rest = iter(schemas[2 * len(operations) :])
    for door in DOORS:
        body = next(rest) if _is_type(door.body) else {}
        result = next(rest) if _is_type(door.result) else {}
        paths.setdefault(door.path, {})[door.verb.lower()] = _door(door, body, result)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Nuage", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _is_type(what: object) -> bool:
    return what is not None and not isinstance(what, str)


def _door(door: Door, body: dict[str, object], result: dict[str, object]) -> dict[str, object]:
    """Describe a door that is no operation."""
    content: dict[str, object] = {door.media: {}} if door.media else {}
    if door.result is not None:
        content[JSON] = {"schema": _answer(result)}
    described: dict[str, object] = {
        "operationId": door.name,
        "summary": door.summary,
        "tags": [door.name.partition(".")[0]],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PARAMETER.findall(door.path)
        ]
        + [
            {
                "name": name, "in": "query", "required": False, "description": text,
                "schema": {"type": "integer"},
            }
            for name, text in door.query.items()
        ],
        "responses": {
            str(door.status): {"description": "done", **({"content": content} if content else {})},
            **{
                str(status): {
                    "description": _ERRORS[str(status)],
                    "content": {JSON: {"schema": _ERROR}},
                }
                for status in door.errors
            },
        },
    }  # fmt: skip
    if door.body is not None:
        media = door.body if isinstance(door.body, str) else JSON
        described["requestBody"] = {
            "required": True,
            "content": {media: {"schema": body} if body else {}},
        }
    if not door.needs_token:
        described["security"] = []
    return described


def _resolved(schema: dict[str, object], components: dict[str, object]) -> dict[str, object]:
    reference = str(schema.get("$ref", "")).rpartition("/")[2]
    return cast(dict[str, object], components[reference]) if reference else schema


def _described(
    operation: Operation[object, object], body: dict[str, object], result: object
) -> dict[str, object]:
    in_path = _PARAMETER.findall(operation.path)
    properties = cast(dict[str, object], body.get("properties", {}))
    required = cast(list[str], body.get("required", []))
    in_query = operation.verb in ("GET", "DELETE")
    parameters = [
        {
            "name": name,
            "in": "path" if name in in_path else "query",
            "required": name in in_path or name in required,
            "schema": schema,
        }
        for name, schema in properties.items()
        if in_query or name in in_path
    ]
    described: dict[str, object] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.name.partition(".")[0]],
        "parameters": parameters,
        "responses": {
            str(operation.status): {
                "description": "done",
                "content": {"application/json": {"schema": _answer(result)}},
            },
            **{
                status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
                for status, text in _ERRORS.items()
            },
        },
    }
    rest = {name: schema for name, schema in properties.items() if name not in in_path}
    if not in_query and rest:
        described["requestBody"] = {
            "required": any(name in required for name in rest),
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": rest,
                        "required": [name for name in required if name in rest],
                        "additionalProperties": False,
                    }
                }
            },
        }
    return described


def _answer(result: object) -> dict[str, object]:
    return {
        "type": "object",
        "required": ["site", "request_id", "result"],
        "properties": {
            "site": {"type": "string", "description": "the site that gave this answer"},
            "request_id": {"type": "string"},
            "result": result,
        },
    }


_ERROR: Final[dict[str, object]] = {
    "type": "object",
    "required": ["site", "request_id", "error"],
    "properties": {
        "site": {"type": "string"},
        "request_id": {"type": "string"},
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "hint": {"type": "string"},
                "field": {"type": "string"},
            },
        },
    },
}
