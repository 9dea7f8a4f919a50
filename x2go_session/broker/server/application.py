"""The broker over HTTP: an ASGI application with `/plain/` and `/json/`.

A request is a form in the body of a POST; what is in the path behind the two names is
the `inifile` of x2gobroker's URLs, or nothing. Who is refused gets 401, and 429 with
`Retry-After` when nothing was looked at.

The body is read whatever its type is called: x2goclient says something else. It is
short and has few fields; more is refused before it is looked at.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Lifespan

from rtunnel.errors import ConfigError
from x2go_session.broker import json_text, plain, requests
from x2go_session.broker.answers import CONNECTED, DENIED, Answer
from x2go_session.broker.requests import Task
from x2go_session.broker.server.broker import Broker
from x2go_session.broker.server.errors import (
    LoginRefused,
    PasswordNotChanged,
    StateError,
    TooManyFailures,
)
from x2go_session.broker.server.login import Credentials

log = logging.getLogger("x2go_session.broker")

BACKENDS: Final = ("", "inifile")


def make_application(
    broker: Broker, lifespan: Lifespan[Starlette] | None = None
) -> Starlette:
    """Return the ASGI application of a broker; `lifespan` is what runs beside it."""

    def endpoint(as_json: bool) -> Route:
        async def answer(request: Request) -> Response:
            if request.path_params.get("backend", "").strip("/") not in BACKENDS:
                return PlainTextResponse("No such broker\n", 404)
            body = await _body(request)
            if body is None:
                return PlainTextResponse("The request is too long\n", 413)
            try:
                asked = requests.Request.from_form(body)
            except ValueError:
                return PlainTextResponse("The request is no form\n", 400)
            address = request.client.host if request.client else ""
            return await run_in_threadpool(_respond, broker, asked, address, as_json)

        name = "json" if as_json else "plain"
        return Route(f"/{name}{{backend:path}}", answer, methods=["POST"])

    return Starlette(routes=[endpoint(False), endpoint(True)], lifespan=lifespan)


async def _body(request: Request) -> bytes | None:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > requests.MOST_REQUEST_BYTES:
            return None
    return body


def _respond(
    broker: Broker, request: requests.Request, address: str, as_json: bool
) -> Response:
    given = Credentials(request.user, address, request.password, request.authid)
    try:
        text = _answer(broker, request, given, as_json)
    except TooManyFailures as error:
        headers = {"Retry-After": str(round(error.wait_s))}
        return PlainTextResponse(f"{DENIED}\n", 429, headers)
    except LoginRefused:
        return PlainTextResponse(f"{DENIED}\n", 401)
    except PasswordNotChanged as error:
        return PlainTextResponse(f"The password was not changed: {error}\n", 403)
    except (StateError, ConfigError) as error:
        log.error("%s", error)
        return PlainTextResponse("The broker cannot work now\n", 503)
    media_type = json_text.MEDIA_TYPE if as_json else plain.MEDIA_TYPE
    return Response(text, headers={"Content-Type": media_type})


def _answer(
    broker: Broker, request: requests.Request, given: Credentials, as_json: bool
) -> str:
    task = request.task
    if task is Task.SET_PASSWORD:
        # All authids are worthless then: here is a new one.
        broker.logins.change_password(given, request.new_password)
        answer = Answer(broker.logins.issue(given))
    else:
        answer = Answer(broker.logins.admit(given))
    if task is Task.TEST_CONNECTION:
        return "" if as_json else CONNECTED
    if task is Task.LIST_SESSIONS:
        profiles = broker.profiles(request.user, given.address)
        answer = replace(answer, profiles=profiles)
    elif task is Task.SELECT_SESSION:
        selected = broker.select(
            request.profile_id,
            request.user,
            given.address,
            login=request.login,
            offer=request.pubkey,
        )
        answer = replace(answer, selected=selected)
    return (
        json_text.format_answer(answer, task)
        if as_json
        else plain.format_answer(answer)
    )
