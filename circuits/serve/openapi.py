"""The OpenAPI document as a list that a page can show."""

from __future__ import annotations

from typing import Any


def described(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry per endpoint: method, path, what it does, parameters, body, answers."""
    return [_endpoint(document, method, path, operation) for path, operations in document["paths"].items()
            for method, operation in operations.items()]


def _endpoint(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> dict[str, Any]:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    parameters = [{"name": given["name"], "where": given["in"], "type": type_name(given["schema"]),
                   "description": given.get("description") or given["schema"].get("description", ""),
                   "required": given.get("required", False)} for given in operation.get("parameters", [])]
    return {"method": method.upper(), "path": path, "description": operation.get("description", ""),
            "parameters": parameters + (_fields(document, body) if body else []),
            "answers": [{"status": status, "description": answer["description"]}
                        for status, answer in sorted(operation["responses"].items())]}


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    model = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return [{"name": name, "where": "body", "type": type_name(field), "description": field.get("description", ""),
             "required": name in model.get("required", [])} for name, field in model.get("properties", {}).items()]


def type_name(schema: dict[str, Any]) -> str:
    """A schema's type in a word or two, with its limits."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(type_name(option) for option in schema["anyOf"])
    kind = schema.get("type", "value")
    if kind == "array":
        return f"list of {type_name(schema.get('items', {}))}"
    limits = [(name, schema[key]) for name, key in (
        ("above", "exclusiveMinimum"), ("at least", "minimum"), ("at most", "maximum")) if key in schema]
    if "maxLength" in schema:
        limits.append(("at most", f"{schema['maxLength']:,} characters"))
    return f"{kind} ({', '.join(f'{name} {limit}' for name, limit in limits)})" if limits else kind
