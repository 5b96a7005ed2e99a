"""Bodies of HTTP requests as strict JSON, and errors that can always be sent.

The standard parser takes NaN, keys that are there twice and half a surrogate pair; an error that
repeats such a value cannot be written as JSON, and the client gets a 500 for its own mistake.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

MAX_BODY_BYTES = 4 * 2**20
"""Some three times the longest record: every feature at each of the most visits."""

_MAX_ERRORS = 20
_MAX_DIGITS = 400
"""A longer integer is no float64, and Python refuses to read one of thousands of digits."""
_SHOWN = 60


class StrictRoute(APIRoute):
    """A route whose body is one JSON text in UTF-8 of a bounded size, without repeated keys."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, which sees the body through `_StrictRequest`."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def strict(request: Request) -> Response:
            checked = _StrictRequest(request.scope, request.receive)
            # FastAPI answers 400 without a word to what is raised while it reads the body itself.
            if await checked.body():
                await checked.json()
            return await handle(checked)

        return strict


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """A 422 that says where and why; the values themselves are not repeated."""
    assert isinstance(error, RequestValidationError)
    details = [
        {
            "loc": [_text(part) if isinstance(part, str) else part for part in each["loc"]],
            "msg": _text(each["msg"]),
            "type": each["type"],
        }
        for each in error.errors()[:_MAX_ERRORS]
    ]
    return JSONResponse(status_code=422, content={"detail": details})


class _StrictRequest(Request):
    async def body(self) -> bytes:
        """The body.

        Raises:
            HTTPException: 415 or 413, if it is no JSON by its header, or too long.
        """
        if not hasattr(self, "_body"):
            self._check_type()
            parts: list[bytes] = []
            size = 0
            async for part in self.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise HTTPException(
                        413, f"the body must have at most {MAX_BODY_BYTES} bytes; send less"
                    )
                parts.append(part)
            self._body = b"".join(parts)
        return self._body

    async def json(self) -> Any:
        """The body as JSON.

        Raises:
            RequestValidationError: if it is none.
        """
        if not hasattr(self, "_json"):
            self._json = _parsed(await self.body())
        return self._json

    def _check_type(self) -> None:
        given = self.headers.get("content-type", "")
        kind = given.partition(";")[0].strip().lower()
        if kind != "application/json" and not (
            kind.startswith("application/") and kind.endswith("+json")
        ):
            raise HTTPException(
                415, f"content-type must be 'application/json', got {_text(given)!r}"
            )


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_named_once, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise _wrong(f"the body must be UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise _wrong(f"the body must be JSON: {error.msg} at {error.pos}") from error
    except RecursionError as error:
        raise _wrong("the body must be JSON of some levels, but is nested deeper") from error


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if _text(name, len(name)) != name:
            raise _wrong("this key must be text, but has half a surrogate pair", name)
        if name in found:
            raise _wrong("this key stands twice in one object; give it once", name)
        found[name] = value
    return found


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _wrong(message: str, *place: str) -> RequestValidationError:
    error = {"type": "json_invalid", "loc": ("body", *place), "msg": message, "input": None}
    return RequestValidationError([error])


def _text(text: str, longest: int = 4 * _SHOWN) -> str:
    """A text that can be sent: no half of a surrogate pair, and not endless."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return plain if len(plain) <= longest else f"{plain[:_SHOWN]}... ({len(plain)} characters)"
