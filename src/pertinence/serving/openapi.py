"""The description of the interface in OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from .._version import __version__
from .arguments import MIB, ServeArguments
from .parameters import FUNCTIONS, KINDS


TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
STATUSES = {
    "400": "A parameter, the form of the request or the image is wrong.",
    "401": "The key is missing or unknown.",
    "408": "The request took too long to arrive.",
    "413": "The request has too many bytes, or the image too many pixels.",
    "415": "The file is no image of a format that is read.",
    "422": "The image is too long for its width, or an expert cannot take it.",
    "429": "Too many requests are being answered.",
    "503": "None of the allowed operating points is fast enough now; `Retry-After` says when to try again.",
}


def describe_api(args: ServeArguments, needs_key: bool) -> dict[str, Any]:
    """The description of a server with these limits."""
    error = {"$ref": "#/components/schemas/Error"}
    refusals = {status: _response(text, error) for status, text in STATUSES.items()}
    schemas = {name: _schema(name) for name in KINDS}
    image = {"type": "string", "contentEncoding": "base64", "description": "An image file in base64; no URL."}
    answered = {"oneOf": [{"$ref": "#/components/schemas/Answers"}, {"$ref": "#/components/schemas/Details"}]}
    key: dict[str, Any] = {"security": [{"key": []}]} if needs_key else {}
    kinds = [f"image/{name.lower()}" for name in args.formats]
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {"type": "object", "required": ["file"], "properties": {"file": binary["schema"], **schemas}}
    inputs = {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "inputs": image,
            "parameters": {"type": "object", "additionalProperties": False, "properties": schemas},
        },
    }
    classify = {
        "operationId": "classify",
        "summary": "Classify an image.",
        "description": f"At most {args.max_bytes // MIB} MiB and {args.max_megapixels:g} million pixels.",
        "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()],
        "requestBody": {
            "required": True,
            "content": {
                **dict.fromkeys([*kinds, "application/octet-stream"], binary),
                "application/json": {"schema": inputs},
                "multipart/form-data": {"schema": form},
            },
        },
        "responses": {"200": _response("The labels and their scores.", answered, HEADERS), **refusals},
        **key,
    }
    simple = {
        "/health": ("health", "Whether the process is alive.", {}),
        "/ready": ("ready", "Whether requests should be sent here.", {"503": refusals["503"]}),
        "/info": ("info", "What is served, and how it goes.", {"401": refusals["401"]} if needs_key else {}),
    }
    paths: dict[str, Any] = {"/": {"post": classify}}
    for path, (name, summary, more) in simple.items():
        responses = {"200": _response(summary, {"type": "object"}), **more}
        paths[path] = {"get": {"operationId": name, "summary": summary, "responses": responses}}
    text = {"200": {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    paths["/metrics"] = {"get": {"operationId": "metrics", "summary": "What was counted.", "responses": text}}
    for path in ("/info", "/metrics"):
        paths[path]["get"] |= key
    components: dict[str, Any] = {"schemas": SCHEMAS}
    if needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    title = "pertinence: image classification"
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "paths": paths,
        "components": components,
    }


def _schema(name: str) -> dict[str, Any]:
    kind, text = KINDS[name]
    schema: dict[str, Any] = {"type": TYPES[kind], "description": text}
    if name == "function_to_apply":
        schema["enum"] = list(FUNCTIONS)
    return schema | ({"minimum": 1} if name == "top_k" else {})


def _response(text: str, schema: dict[str, Any], headers: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"description": text, "content": content, **({"headers": headers} if headers else {})}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


TEXT, NUMBER = {"type": "string"}, {"type": "number"}
SCHEMAS: dict[str, Any] = {
    "Error": _object(error=TEXT),
    "Answers": {"type": "array", "items": _object(label=TEXT, score=NUMBER)},
    "Details": _object(
        answers={"$ref": "#/components/schemas/Answers"},
        operating_point=TEXT,
        expert=TEXT,
        experts_run={"type": "array", "items": TEXT},
        gmacs=NUMBER,
        confidence={"type": ["number", "null"]},
        abstained={"type": "boolean"},
        ood_p_value={"type": ["number", "null"]},
        decisions={
            "type": "array",
            "items": _object(after=TEXT, chosen=TEXT, scores={"type": "object", "additionalProperties": NUMBER}),
        },
    ),
}
HEADERS = {
    "X-Operating-Point": {"schema": TEXT, "description": "The operating point that answered."},
    "X-Expert": {"schema": TEXT, "description": "The expert that answered."},
    "X-GMACs": {"schema": NUMBER, "description": "What the image cost."},
    "X-Confidence": {"schema": NUMBER, "description": "Probability that the answer is right, where it is known."},
    "X-Abstained": {"schema": {"type": "boolean"}, "description": "Whether no answer is given."},
}
