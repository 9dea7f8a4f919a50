"""The broker over HTTP: an ASGI application with `/plain/` and `/json/`.

A request is a form in the body of a POST; what is in the path behind the two names is
the `inifile` of x2gobroker's URLs, or nothing. Who is refused gets 401, and 429 with
`Retry-After` when nothing was looked at.

The body is read whatever its type is called: x2goclient says something else. It is
short and has few fields; more is refused before it is looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Lifespan

from rtunnel.errors import ConfigError
from x2go_session.broker.server import answers
from x2go_session.broker.server.broker import Broker
from x2go_session.broker.server.errors import (
    LoginRefused,
    PasswordNotChanged,
    StateError,
    TooManyFailures,
)
from x2go_session.broker.server.login import Credentials

log = logging.getLogger("x2go_session.broker")

# A public key of RSA 16384, twice percent-encoded, and then some.
MOST_BYTES: Final = 32 * 1024
MOST_FIELDS: Final = 32
BACKENDS: Final = ("", "inifile")
# x2gobroker's; python-x2go looks at it.
JSON_TYPE: Final = "text/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a request, by the names that both forms of the protocol have."""

    task: str
    user: str
    password: str
    authid: str
    profile_id: str
    login: str
    pubkey: str
    newpass: str

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Form:
        """Return what the fields of a body say."""
        return cls(
            fields.get("task", ""),
            fields.get("user", ""),
            fields.get("password", ""),
            fields.get("authid", ""),
            fields.get("sid", fields.get("profile-id", "")),
            fields.get("login", ""),
            fields.get("pubkey", ""),
            fields.get("newpass", ""),
        )


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
                form = Form.of(read_form(body))
            except ValueError:
                return PlainTextResponse("The request is no form\n", 400)
            address = request.client.host if request.client else ""
            return await run_in_threadpool(_respond, broker, form, address, as_json)

        name = "json" if as_json else "plain"
        return Route(f"/{name}{{backend:path}}", answer, methods=["POST"])

    return Starlette(routes=[endpoint(False), endpoint(True)], lifespan=lifespan)


def read_form(body: bytes) -> dict[str, str]:
    """Read a form; of several fields of a name, the first. Raises ValueError."""
    pairs = parse_qsl(
        body.decode("utf-8"),
        keep_blank_values=True,
        encoding="utf-8",
        errors="strict",
        max_num_fields=MOST_FIELDS,
    )
    return dict(reversed(pairs))


async def _body(request: Request) -> bytes | None:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            return None
    return body


def _respond(broker: Broker, form: Form, address: str, as_json: bool) -> Response:
    given = Credentials(form.user, address, form.password, form.authid)
    try:
        text = _json(broker, form, given) if as_json else _plain(broker, form, given)
    except TooManyFailures as error:
        headers = {"Retry-After": str(round(error.wait_s))}
        return PlainTextResponse(f"{answers.DENIED}\n", 429, headers)
    except LoginRefused:
        return PlainTextResponse(f"{answers.DENIED}\n", 401)
    except PasswordNotChanged as error:
        return PlainTextResponse(f"The password was not changed: {error}\n", 403)
    except (StateError, ConfigError) as error:
        log.error("%s", error)
        return PlainTextResponse("The broker cannot work now\n", 503)
    return Response(text, media_type=JSON_TYPE if as_json else "text/plain")


def _plain(broker: Broker, form: Form, given: Credentials) -> str:
    if form.task == "setpass":
        return answers.plain_granted(_set_password(broker, form, given))
    authid = broker.logins.admit(given)
    if form.task == "testcon":
        return answers.CONNECTED
    text = answers.plain_granted(authid)
    if form.task == "listsessions":
        text += answers.plain_profiles(broker.profiles(form.user, given.address))
    elif form.task == "selectsession":
        text += answers.plain_selection(_select(broker, form, given))
    return text


def _json(broker: Broker, form: Form, given: Credentials) -> str:
    # The older name of the task.
    task = "listprofiles" if form.task == "listsessions" else form.task
    if task == "setpass":
        return answers.json_answer(task, _set_password(broker, form, given))
    authid = broker.logins.admit(given)
    if task == "testcon":
        return ""
    profiles = selection = None
    if task == "listprofiles":
        profiles = broker.profiles(form.user, given.address)
    elif task == "selectsession":
        selection = _select(broker, form, given)
    return answers.json_answer(task, authid, profiles=profiles, selection=selection)


def _select(broker: Broker, form: Form, given: Credentials) -> answers.Selection:
    return broker.select(
        form.profile_id,
        form.user,
        given.address,
        login=form.login,
        offer=form.pubkey,
    )


def _set_password(broker: Broker, form: Form, given: Credentials) -> str:
    """Change the password, which makes all authids worthless; return a new one."""
    broker.logins.change_password(given, form.newpass)
    return broker.logins.issue(given)
