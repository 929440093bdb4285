"""Transfer a file, or the rest of a file, by HTTP.

urllib is used, because no installed library does all of this: ``huggingface_hub`` resumes and
locks, but serves only its own hub; ``torch.hub.download_url_to_file`` hashes, but neither resumes
nor locks. pooch would be a new dependency (with requests), and restarts from zero; httpx and fsspec
would replace only the hundred lines below, not the cache.

Only http and https are allowed, also after a redirect, and https never falls back to http. Every
error is one line without the secrets of the URL.
"""

from __future__ import annotations

import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import IO, NoReturn
from urllib.parse import urlsplit

from rvos_deploy.environment import versions
from rvos_deploy.errors import DownloadError, InputError, one_line
from rvos_deploy.redaction import redact, redact_text

TIMEOUT = 30.0
"""Seconds for which a server may be silent."""

_LONGEST = 1024  # characters of a URL without its secrets, and of a version
_CHUNK = 1 << 20
_START = 512  # bytes that suffice to recognise a web page
_SCHEME = re.compile(r"[a-z][a-z0-9+.\-]*://", re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|head|body|script|\?xml)", re.I)


class BrokenConnectionError(Exception):
    """Report a body that ended early; the text states the bytes received, and the cause."""


class _RangeError(Exception):
    """Report a server that does not continue the file at the requested byte."""


@dataclass(frozen=True)
class Transfer:
    """Hold a running response.

    Args:
        response: the response, whose body is still to be read.
        offset: byte of the file at which the body starts.
        total: bytes of the whole file; None: the server does not state it.
        version: identifier of the file's version (ETag or date); None: the server sends none.
        detects_truncation: whether a truncated body can be distinguished from a complete body.
    """

    response: HTTPResponse
    offset: int
    total: int | None
    version: str | None
    detects_truncation: bool


def is_url(text: str) -> bool:
    """Tell whether an argument is a URL of any scheme, rather than a path."""
    return _SCHEME.match(text) is not None


def check_url(url: str) -> None:
    """Refuse a URL that cannot be fetched.

    Raises:
        InputError: the scheme is not http or https, or the URL has a user name or password, no
            host, no file name, or characters that a URL may not hold.
    """
    shown = redact(url)
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        _ = parts.port
    except ValueError as error:
        raise InputError(f"'{shown}' is not a valid address: {error}; check it") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise InputError(
            f"'{shown}' cannot be fetched: only http:// and https:// can; give a local file by its "
            "path, without 'file://'"
        )
    if "@" in parts.netloc:
        raise InputError(
            f"'{shown}' was given with a user name, which is not supported; fetch the file "
            "yourself, and give its path"
        )
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError(f"'{shown}' is not a valid address; copy it from a browser")
    if len(shown) > _LONGEST:
        raise InputError(f"the address has {len(shown)} characters, at most {_LONGEST}; shorten it")
    if parts.path.endswith("/") or not parts.path:
        raise InputError(f"'{shown}' does not name a file; give the address of the file itself")


@contextmanager
def open_transfer(url: str, offset: int = 0, version: str | None = None) -> Iterator[Transfer]:
    """Request a file from ``offset`` on, if the server still has the version ``version``.

    The response starts at 0 if the server's file has changed, or the server cannot continue.

    Raises:
        DownloadError: the server does not answer, or answers with an error or a web page.
    """
    shown = redact(url)
    try:
        transfer = _open(url, offset, version) if offset and version else _open(url, 0, None)
    except _RangeError:
        transfer = _open(url, 0, None)
    with transfer.response:
        if transfer.response.headers.get_content_type() == "text/html":
            refuse_page(shown, transfer.response.url)
        yield transfer


def read_chunks(transfer: Transfer) -> Iterator[bytes]:
    """Yield the body as it arrives, in chunks of at most 1 MiB.

    Raises:
        BrokenConnectionError: the body is shorter than the server announced.
    """
    done, of = transfer.offset, "" if transfer.total is None else f" of {transfer.total}"
    while True:
        try:
            chunk = transfer.response.read1(_CHUNK)
        except (OSError, HTTPException) as error:
            raise BrokenConnectionError(f"broke after {done}{of} bytes: {_reason(error)}") from None
        if not chunk:
            break
        done += len(chunk)
        yield chunk
    if transfer.total is not None and done < transfer.total:
        raise BrokenConnectionError(f"broke after {done}{of} bytes: the server ended it")


def is_page(file: Path) -> bool:
    """Tell whether a file begins like a web page."""
    with file.open("rb") as content:
        return _PAGE.match(content.read(_START)) is not None


def refuse_page(shown: str, answered: str = "") -> NoReturn:
    """Raise DownloadError, because the server sent a web page instead of the file.

    The page may be a login of the network or site, or a page about the file.
    """
    last = redact(answered)
    where = "" if last in ("", shown) else f" (of {last})"
    raise DownloadError(
        f"{shown} answers with a web page{where}, not with a file; check that this is the address "
        "of the file itself, and that the network does not ask for a login, or fetch the file with "
        "a browser and give its path"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new != "https" and new != old:
            fp.close()
            raise DownloadError(
                f"{redact(req.full_url)} redirects to {redact(newurl)}, which is not followed: "
                f"{old} is needed; check the address"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener without the handlers of file:, ftp: and data:, unlike urlopen's."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _open(url: str, offset: int, version: str | None) -> Transfer:
    shown = redact(url)
    product = f"rvos-deploy/{versions().get('rvos-deploy', '0')}"
    headers = {"User-Agent": product, "Accept-Encoding": "identity"}
    if offset and version:
        headers |= {"Range": f"bytes={offset}-", "If-Range": version}
    try:
        request = urllib.request.Request(url, headers=headers)
        response: HTTPResponse = _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:
            raise _RangeError from None
        raise DownloadError(f"{shown} {_status(error.code)}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"{shown} cannot be fetched: {_reason(error)}") from None
    try:
        return _checked(response, shown, offset, version)
    except BaseException:
        response.close()
        raise


def _checked(response: HTTPResponse, shown: str, offset: int, version: str | None) -> Transfer:
    headers = response.headers
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise DownloadError(
            f"{shown} comes compressed ({one_line(headers['Content-Encoding'], 20)}), but was "
            "requested uncompressed; fetch it with a browser, and give its path"
        )
    new = _version_of(headers)
    if response.status == 206 and offset:
        found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        # Some servers ignore If-Range, so the stated version must equal the requested version.
        if found is None or int(found[1]) != offset or new not in (None, version):
            response.close()
            raise _RangeError
    elif response.status == 200:
        offset, version = 0, new
    else:
        raise DownloadError(f"{shown} {_status(response.status)}")
    total = None if response.length is None else offset + response.length
    return Transfer(response, offset, total, version, response.chunked or total is not None)


def _version_of(headers: HTTPMessage) -> str | None:
    """Return the ETag, or else the date, which If-Range sends back."""
    version = str(headers.get("ETag", ""))
    if not version.startswith('"'):  # a weak one (W/"...") does not promise the same bytes
        version = str(headers.get("Last-Modified", ""))
    return version if 0 < len(version) <= _LONGEST and version.isprintable() else None


def _status(code: int) -> str:
    if code in (404, 410):
        return f"does not exist (HTTP {code}); check the address, or look for a new one"
    if code in (401, 403, 407):
        return (
            f"may not be fetched without a login (HTTP {code}); fetch it with a browser, and give "
            "its path"
        )
    if code == 429 or code >= 500:
        return f"is not available now (HTTP {code}); try again later"
    if 300 <= code < 400:
        return f"redirects in circles, or not to an http address (HTTP {code}); check the address"
    return f"is refused by its server (HTTP {code}); check the address"


def _reason(error: BaseException) -> str:
    """Describe why a connection failed, and the remedy; the library's message is shortened."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    message = getattr(cause, "strerror", None) or cause  # without the error number
    words = one_line(redact_text(str(message))) or type(cause).__name__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({one_line(cause.verify_message)}); a network with a "
            "certificate of its own needs SSL_CERT_FILE=FILE, and the machine's clock must be right"
        )
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed ({words}); check the address and the proxy"
    if isinstance(cause, socket.gaierror):
        return f"its host is not found ({words}); check the address and the network"
    if isinstance(cause, TimeoutError):
        return f"no answer for {TIMEOUT:.0f} s; check the network, and try again"
    if isinstance(cause, IncompleteRead):
        return "the server ended it"
    return f"{words}; check the network and the proxy"
