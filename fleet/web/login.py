"""The login, which shows groups below MIN_GROUP and single devices.

Rules:
- A viewer is logged in with the token (as a bearer token, or once on the login page, which sets a cookie), or if a
  trusted reverse proxy sets a header.
- Without a login, a server that listens on loopback shows sums of large groups; one that listens elsewhere shows
  nothing but the login page, and accepts lines, which prove their sender themselves.
- The cookie contains an expiry and a MAC under a key of this process: it ends with the process, or after a day.
- Wrong tokens are limited by address: after ATTEMPTS of them, no token of that address is looked at until it waited.
"""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from fleet.rate_limit import TokenBuckets

COOKIE: Final = "airweights_fleet"
SESSION_S: Final = 86_400
ATTEMPTS: Final = 10.0
ATTEMPTS_PER_SECOND: Final = 0.1
MIN_TOKEN_CHARACTERS: Final = 16


@dataclass(slots=True)
class Login:
    """The logins of one server.

    Attributes:
        token: the token of the operators, or None.
        trusted_header: a header that only the reverse proxy can set, or None.
        is_open: whether sums of large groups are shown without a login.
    """

    token: str | None
    trusted_header: str | None
    is_open: bool
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _attempts: TokenBuckets = field(default_factory=lambda: TokenBuckets(ATTEMPTS, ATTEMPTS_PER_SECOND), repr=False)

    def is_logged_in(self, request: Request) -> bool:
        """Return whether the sender of a request is logged in."""
        if self.trusted_header is not None and request.headers.get(self.trusted_header):
            return True
        if self.token is None:
            return False
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and value:
            return self.is_token(request, value)
        return self._is_session(request.cookies.get(COOKIE, ""))

    def is_token(self, request: Request, text: str) -> bool:
        """Return whether a text is the token; too many wrong ones of an address are not looked at.

        Args:
            request: the request, for the address.
            text: what was sent.
        """
        if self.token is None:
            return False
        if self.is_blocked(request):
            return False
        is_right = hmac.compare_digest(_digest(text), _digest(self.token))
        if not is_right:
            self._attempts.take(_address(request), "")
        return is_right

    def is_blocked(self, request: Request) -> bool:
        """Return whether an address sent too many wrong tokens."""
        return not self._attempts.has_token(_address(request), "")

    def set_cookie(self, request: Request, response: Response) -> None:
        """Add the session's cookie to a response.

        Args:
            request: the request that contained the token.
            response: the response to it.
        """
        expires = str(int(time.time()) + SESSION_S)
        response.set_cookie(
            COOKIE,
            f"{expires}.{self._mac(expires)}",
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https",
        )

    def _is_session(self, cookie: str) -> bool:
        expires, _, mac = cookie.partition(".")
        if not expires.isdecimal() or len(expires) > 12:
            return False
        if not hmac.compare_digest(_digest(mac), _digest(self._mac(expires))):  # texts may only be compared in ASCII
            return False
        return int(expires) > time.time()

    def _mac(self, expires: str) -> str:
        return hmac.new(self._key, expires.encode(), hashlib.sha256).hexdigest()


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
