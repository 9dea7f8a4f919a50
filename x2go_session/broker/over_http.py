"""Ask a session broker over HTTP or HTTPS: one POST, one bounded answer.

The whole exchange has one time limit, which a broker that sends a byte now and then
does not reach round: the request runs on an event loop of its own. Certificates are
verified; there is no switch for that. Redirects are not followed: the request has a
password in it, and would take it to wherever the answer says.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
import anyio.from_thread
import httpx

from rtunnel.errors import ConfigError
from x2go_session.broker import json_text, plain
from x2go_session.broker.answers import MOST_ANSWER_BYTES, Answer, decoded, too_long
from x2go_session.broker.requests import Request
from x2go_session.broker.url import BrokerUrl
from x2go_session.errors import BrokerAnswerError, BrokerDenied, BrokerUnreachable

log = logging.getLogger("x2go_session.broker")

CONNECT_TIMEOUT_S: Final = 15.0
# A broker looks at its servers, and has a session suspended, before it answers; the
# latter alone may take 45 s.
ANSWER_TIMEOUT_S: Final = 90.0
HEADERS: Final = {
    "Content-Type": "application/x-www-form-urlencoded",
    # What is compressed may be longer than what may be sent.
    "Accept-Encoding": "identity",
    "User-Agent": "rtunnel x2go-session",
}
# What brokers are known to speak: UTF-8, and what CGI.pm says of itself.
CHARSETS: Final = ("utf-8", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252")
_HOSTNAME_MISMATCH: Final = 62  # X509_V_ERR_HOSTNAME_MISMATCH
_IP_MISMATCH: Final = 64  # X509_V_ERR_IP_ADDRESS_MISMATCH
_TIMES: Final = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


class HttpBroker:
    """A broker behind a URL. Keeps no connection open.

    `ca_file` has certificates of authorities to trust beside those of the system.
    """

    def __init__(
        self,
        url: BrokerUrl,
        *,
        ca_file: Path | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._url = url
        self._tls = _trusting(ca_file)
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s

    def ask(self, request: Request) -> Answer:
        """Return the answer to a request. Blocks; any thread.

        Raises `BrokerUnreachable`, `BrokerDenied`, `BrokerAnswerError`.
        """
        body = request.form(json=self._url.is_json)
        try:
            with anyio.from_thread.start_blocking_portal() as portal:
                text = portal.call(self._post, body)
        except TimeoutError:
            raise BrokerUnreachable(
                f"the broker {self._url} did not answer within {self._timeout_s:g} s"
            ) from None
        except httpx.ConnectTimeout:
            raise BrokerUnreachable(
                f"the broker {self._url} was not reached within "
                f"{self._connect_timeout_s:g} s"
            ) from None
        except httpx.RemoteProtocolError as error:
            raise BrokerAnswerError(
                f"the broker {self._url} did not answer as HTTP has it, or its answer "
                f"was cut off: {error}"
            ) from error
        except httpx.HTTPError as error:
            raise BrokerUnreachable(self._why(error)) from error
        parse = json_text.parse_answer if self._url.is_json else plain.parse_answer
        return parse(text, request.task)

    def close(self) -> None:
        """Do nothing: no connection stays."""

    async def _post(self, body: bytes) -> str:
        with anyio.fail_after(self._timeout_s):
            async with (
                httpx.AsyncClient(
                    verify=self._tls,
                    timeout=httpx.Timeout(
                        self._timeout_s, connect=self._connect_timeout_s
                    ),
                    follow_redirects=False,
                    headers=HEADERS,
                ) as client,
                client.stream("POST", str(self._url), content=body) as response,
            ):
                log.debug(
                    "answered: broker=%s status=%d", self._url, response.status_code
                )
                self._check(response)
                charset = _charset(response)
                return decoded(await _bounded(response), charset)

    def _check(self, response: httpx.Response) -> None:
        """Raise what the status says, if it is no answer."""
        status = response.status_code
        if status == httpx.codes.OK:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise BrokerAnswerError(
                    f"the broker {self._url} compressed its answer, which was not asked"
                )
            return
        if status == httpx.codes.UNAUTHORIZED:
            raise BrokerDenied(
                f"the broker {self._url} denies access to this user and password"
            )
        if status == httpx.codes.FORBIDDEN:
            raise BrokerDenied(
                f"the broker {self._url} does not do that for this user (HTTP 403)"
            )
        if status == httpx.codes.TOO_MANY_REQUESTS:
            raise BrokerDenied(
                f"the broker {self._url} had too many logins that failed: wait"
                + _seconds(response.headers.get("Retry-After", ""))
            )
        if response.has_redirect_location:
            raise BrokerAnswerError(
                f"the broker {self._url} says that it is elsewhere, at "
                f"{_shown(response.headers['Location'])}: passwords are not taken "
                "there; if that is right, use it as the URL"
            )
        if status in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
            raise BrokerAnswerError(
                f"there is no broker at {self._url} (HTTP {status}): its path is "
                "/plain/ or /json/, unless its operator says otherwise"
            )
        raise BrokerUnreachable(
            f"the broker {self._url} cannot answer now (HTTP {status}): its log says "
            "why"
        )

    def _why(self, error: httpx.HTTPError) -> str:
        """Say why the broker was not reached, and what can be done."""
        for cause in _causes(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                return (
                    f"the certificate of {self._url.address} is not trusted: "
                    f"{cause.verify_message.rstrip('.')}; {_remedy(cause.verify_code)}"
                )
            if isinstance(cause, ssl.SSLError):
                return (
                    f"{self._url.address} did not agree on TLS "
                    f"({cause.reason or cause}): is this the port of its HTTPS?"
                )
        return f"the broker {self._url} cannot be reached: {error or type(error)}"


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{ca_file} has no certificate in PEM that can be trusted: {error}"
            ) from error
    return context


def _remedy(code: int) -> str:
    if code in (_HOSTNAME_MISMATCH, _IP_MISMATCH):
        return "the URL must have a name that stands in the certificate"
    if code in _TIMES:
        return "look at the clock here, and at the certificate there"
    return (
        "if an authority of your own signed it, name the certificate of that authority "
        "(ca_file, --ca-file)"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _charset(response: httpx.Response) -> str:
    charset = (response.charset_encoding or "utf-8").lower()
    if charset == "utf8":
        return "utf-8"
    if charset not in CHARSETS:
        raise BrokerAnswerError(
            f"the broker's answer is in {_shown(charset)}, not in UTF-8"
        )
    return charset


async def _bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MOST_ANSWER_BYTES:
            raise too_long()
    return bytes(body)


def _shown(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)[:200]


def _seconds(text: str) -> str:
    short = text.isascii() and text.isdecimal() and len(text) < 7
    return f" {text} s" if short else ", and try again"
