"""The image file and the parameters of a request: raw bytes, JSON with base64, or a form; within limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ..utils.errors import shown
from .arguments import MIB, ServeArguments
from .parameters import Parameters
from .refusals import Refusal


EXPECTED = 'the bytes of an image, or JSON {"inputs": image in base64, "parameters": {...}}, or a form with one file'
MOST_FIELDS = 20
DISCARDED = 4
"""A body of up to so many times what is allowed is read and thrown away, so that its client reads the refusal."""


@dataclass(frozen=True)
class Upload:
    """What a request sent.

    Attributes:
        content: the image file.
        parameters: what it asks for.
    """

    content: bytes
    parameters: Parameters


async def read_upload(request: Request, args: ServeArguments) -> Upload:
    """Read a request.

    Raises:
        Refusal: it is too large, too slow, or not of one of the three forms.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    given: dict[str, Any] = dict(request.query_params)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "form", "a compressed request is not read: send the image file as it is", closes=True)
    body = await _read_body(request, args)
    if kind == "application/json":
        content, parameters = _read_json(body)
        given |= parameters
    elif kind == "multipart/form-data":
        content, fields = await _read_form(request, body)
        given |= fields
    else:
        content = body
    if not content:
        raise Refusal(400, "form", f"the request holds no image: send {EXPECTED}")
    return Upload(content, Parameters.read(given))


async def _read_body(request: Request, args: ServeArguments) -> bytes:
    too_large = Refusal(413, "size", f"a request has at most {args.max_bytes // MIB} MiB", closes=True)
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > DISCARDED * args.max_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(args.request_seconds):
            async for part in request.stream():
                size += len(part)
                if size > DISCARDED * args.max_bytes:
                    raise too_large
                if size <= args.max_bytes:
                    parts.append(part)
    except TimeoutError:
        raise Refusal(
            408, "slow", f"the request did not arrive within {args.request_seconds:g} seconds", closes=True
        ) from None
    except ClientDisconnect:
        raise Refusal(400, "disconnected", "the client is gone", closes=True) from None
    if size > args.max_bytes:
        raise too_large
    return b"".join(parts)


def _read_json(body: bytes) -> tuple[bytes, dict[str, Any]]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise _refusal("the request is no valid JSON") from None
    if not isinstance(values, dict) or not isinstance(values.get("inputs"), str):
        raise _refusal("the JSON has no text `inputs`")
    parameters = values.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise _refusal(f"`parameters` must be an object, got {shown(parameters, 60)}")
    if unknown := sorted(values.keys() - {"inputs", "parameters"}):
        raise _refusal(f"the JSON has an unknown key {shown(unknown[0], 60)}")
    text = values["inputs"]
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True), parameters
    except (binascii.Error, ValueError):
        what = "a URL, which this server does not fetch" if "://" in text[:20] else "no base64"
        raise _refusal(f"`inputs` is {what}") from None


async def _read_form(request: Request, body: bytes) -> tuple[bytes, dict[str, Any]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=1, max_fields=MOST_FIELDS, max_part_size=1024)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _refusal(f"the form cannot be read ({error.message.rstrip('.')})") from None
    except Exception:  # the parser of hostile headers may raise anything
        raise _refusal("the form cannot be read") from None
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise _refusal("the form has no file")
        fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        return await files[0].read(), fields
    finally:
        await form.close()


def _refusal(sentence: str) -> Refusal:
    return Refusal(400, "form", f"{sentence}: send {EXPECTED}")
