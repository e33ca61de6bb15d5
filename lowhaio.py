"""lowhaio: a streaming HTTP/1.1 client for asyncio, in one module and two closures.

    request, close = Pool()
    code, headers, body = await request(b'GET', 'https://example.com/')
    async for chunk in body:
        ...
    await close()

The module follows the life of a request, in four layers, each of which knows nothing of the next:

    bytes        Request target and head, Response head, Body decoders, Framing and persistence:
                 functions and decoders without a socket, a loop or a clock
    connection   Name resolution, Connection: a socket that can be awaited, without HTTP
    exchange     Request body, Exchange: one loop that sends a request and receives the head of its
                 response, both at once, without a pool
    pool         Response body, Pool

Three rules hold throughout. No task is ever created: everything runs in the caller's own. A
connection has one owner at a time (request, the response body, the pool), which closes it or hands
it on. What comes off the wire is hostile until all its bytes were checked.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import errno
import functools
import ipaddress
import itertools
import logging
import os
import re
import select
import socket
import ssl
import sys
import threading
import types
import urllib.parse
import weakref
from typing import (
    Any, AsyncIterable, AsyncIterator, Awaitable, Callable, Dict, Generator, Iterable, Iterator,
    List, NamedTuple, NoReturn, Optional, Sequence, Tuple, Type, TypeVar, Union,
)

if sys.platform == 'linux':
    import fcntl
    import termios

import aiodnsresolver
from aiodnsresolver import (
    TYPES, DnsCnameChainTooLong, DnsError, DnsRecordDoesNotExist, DnsResponseCode, DnsSocketError,
    DnsTimeout, IPv4AddressExpiresAt, IPv6AddressExpiresAt, Resolver, ResolverLoggerAdapter,
)

__all__ = (
    'HttpConnectionClosedError', 'HttpConnectionError', 'HttpDataError', 'HttpDnsError',
    'HttpError', 'HttpHeaderTooLong', 'HttpInvalidRequest', 'HttpInvalidResponse',
    'HttpLoggerAdapter', 'HttpTlsError', 'Pool', 'buffered', 'empty_async_iterator', 'streamed',
    'timeout',
)


# ---- Exceptions ---------------------------------------------------------------------------------


class HttpError(Exception):
    """A request has failed, or the body of its response.

    If another exception is the reason, it is the `__cause__`, such as `asyncio.TimeoutError` after
    `socket_timeout`.
    """


class HttpConnectionError(HttpError):
    """Nothing of this request was sent. It is safe to try again."""


class HttpDnsError(HttpConnectionError):
    """The name of the host could not be resolved to an address."""


class HttpTlsError(HttpConnectionError):
    """The TLS handshake failed, or the certificate of the server is not valid for the host."""


class HttpInvalidRequest(HttpConnectionError):
    """An argument of the request is wrong, or its body is not what its headers say."""


class HttpDataError(HttpError):
    """Some of this request was sent, or may have been. The server may have acted on it."""


class HttpConnectionClosedError(HttpDataError):
    """The connection ended before the response did."""


class HttpHeaderTooLong(HttpDataError):
    """A head, a chunk line or the trailers of a response are longer than `max_header_length`."""


class HttpInvalidResponse(HttpDataError):
    """The server broke the syntax or the framing of HTTP/1.1 (RFC 9112)."""


# ---- Logging ------------------------------------------------------------------------------------


class HttpLoggerAdapter(logging.LoggerAdapter):  # type: ignore[type-arg]
    """Puts `[http]` before each message, or `[http:METHOD,URL]` within a request."""

    def process(self, msg: Any, kwargs: Any) -> Tuple[Any, Any]:
        extra = ','.join(map(str, (self.extra or {}).values()))
        # The prefix becomes part of the format, where a % of the URL would be a conversion
        extra = extra.replace('%', '%%') if '%' in str(msg) else extra
        return '[http%s] %s' % (':' + extra if extra else '', msg), kwargs


_LoggerAdapter = Union[logging.Logger, 'logging.LoggerAdapter[Any]']
_GetLoggerAdapter = Callable[[Dict[str, Any]], _LoggerAdapter]
_GetResolverLoggerAdapter = Callable[[Dict[str, Any]], _GetLoggerAdapter]
_Log = Callable[..., None]

_LOGGER = logging.getLogger('lowhaio')
_RESOLVER_LOGGER = logging.getLogger('aiodnsresolver')
_get_logger_adapter = functools.partial(HttpLoggerAdapter, _LOGGER)


def _get_resolver_logger_adapter(http_extra: Dict[str, Any]) -> _GetLoggerAdapter:
    adapter = HttpLoggerAdapter(_RESOLVER_LOGGER, http_extra)
    return functools.partial(ResolverLoggerAdapter, adapter)


def _debug(get_logger: _GetLoggerAdapter, method: bytes = b'', url: str = '') -> Optional[_Log]:
    """What logs at debug level, or None. Asked once a request: a call that is off costs 0.7 us."""
    if get_logger is _get_logger_adapter and not _LOGGER.isEnabledFor(logging.DEBUG):
        return None  # Without the adapter, which costs 1 us
    logger = get_logger(_extra(method, url))
    return logger.debug if logger.isEnabledFor(logging.DEBUG) else None


def _extra(method: bytes, url: str) -> Dict[str, Any]:
    return {'lowhaio_method': method.decode(), 'lowhaio_url': url} if method else {}


# ---- Helpers ------------------------------------------------------------------------------------

_Chunk = Union[bytes, bytearray, memoryview]


async def empty_async_iterator() -> AsyncIterator[bytes]:
    """Yield nothing: the `body` of a request that has none."""
    return
    yield b''


def streamed(data: _Chunk) -> Callable[[], AsyncIterator[bytes]]:
    """Return a function for the argument `body` of a request. The request then sends `data`."""
    async def body() -> AsyncIterator[Any]:
        yield data

    return body


async def buffered(data: AsyncIterable[_Chunk]) -> bytes:
    """Return all the bytes of a response body, or of any asynchronous iterable of bytes."""
    try:
        return b''.join([chunk async for chunk in data])
    except TypeError:
        if hasattr(data, '__aiter__'):
            raise
        raise TypeError(
            'buffered needs the body of a response, not %s: code, headers, body = await '
            'request(...), and then await buffered(body)' % type(data).__name__) from None


_COUNTS_CANCELLATIONS = hasattr(asyncio.Task, 'cancelling')  # From Python 3.11 on


def _cancellations() -> int:
    """How many cancellations this task has not taken back: Python 3.11 counts them."""
    task: Any = asyncio.current_task()
    return task.cancelling() if _COUNTS_CANCELLATIONS else 0


@contextlib.contextmanager
def timeout(loop: asyncio.AbstractEventLoop, seconds: float) -> Iterator[Callable[[], None]]:
    """Raise `asyncio.TimeoutError` in the current task once `seconds` have passed in the block.

    Yields a function without arguments that starts the time again. If the task is cancelled from
    outside, that stays an `asyncio.CancelledError`. Raises RuntimeError outside of a task.
    """
    task: Any = asyncio.current_task(loop)
    if task is None:
        raise RuntimeError('timeout must be used in a task: it is what it cancels')
    cancelling = _cancellations()
    is_expired = is_over = False

    def expire() -> None:
        nonlocal is_expired
        is_expired = True
        task.cancel()

    timer = loop.call_later(seconds, expire)

    def reset() -> None:
        nonlocal timer
        if not is_expired and not is_over:
            timer.cancel()
            timer = loop.call_later(seconds, expire)

    def end() -> bool:
        """Return whether the task is cancelled by this timeout alone, and take that back."""
        nonlocal is_over
        is_over = True
        timer.cancel()
        return is_expired and (not hasattr(task, 'uncancel') or task.uncancel() <= cancelling)

    try:
        yield reset
    except asyncio.CancelledError as exception:
        if end():
            raise asyncio.TimeoutError('%s seconds have passed' % seconds) from exception
        raise
    finally:
        if not is_over:
            end()


# ---- Request target and head (RFC 3986; RFC 9110 4.2; RFC 9112 3) -------------------------------

_Fields = Tuple[Tuple[bytes, bytes], ...]


class _Origin(NamedTuple):
    """Scheme, host and port (RFC 9110 4.3), in the forms that the steps of a request need."""

    tls: bool
    host: str  # An IP address, or a name: in lower case, IDNA-encoded, without a trailing dot
    port: int
    addresses: Tuple[str, ...]  # Of an IP address, itself
    host_field: bytes
    key: str  # Host and port; its hash is there already


# RFC 9110 5.6.2: token = 1*tchar
_TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TOKEN = re.compile(_TCHAR + rb'+')
# RFC 9110 5.5 and 5.6.6: a field value has no control characters but HTAB
_FIELD_VALUE_CONTROL = re.compile(rb'[\x00-\x08\x0a-\x1f\x7f]')
# RFC 9110 7.2: Host = uri-host [ ":" port ]
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:%[0-9A-Fa-f]{2}|[A-Za-z0-9\-._~!$&'()*+,;=])*)(?::[0-9]*)?")

_CONTENT_LENGTH = re.compile(rb'[0-9]{1,19}')  # RFC 9110 8.6; 19 digits are ten exabytes

# RFC 3986 appendix B, with scheme and authority required
_URL = re.compile(r'([^:/?#]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?')
_NOT_IN_URL = re.compile(r'[\x00-\x1f\x7f\ud800-\udfff]')
_ZONE = re.compile(r'\[[0-9A-Fa-f:.]*%')
_AUTHORITY = re.compile(r'(\[[0-9A-Fa-f:.]*\]|[^:\[\]]+)(?::([0-9]{0,5}))?')
# RFC 1035 2.3.1 and 2.3.4, and underscores, which names in private networks have
_NAME = re.compile(r'(?!.{254})[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*')

# URL standard, "ends in a number": some system's resolver takes it for an IPv4 address
_NUMERIC_LAST_LABEL = re.compile(r'(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)')

# What Python (IDNA 2003) makes another name of than browsers do (UTS 46): five that IDNA 2008
# allows, a soft hyphen, those with a dot in them, and those of Unicode's Corrigendum 4
_AMBIGUOUS_IN_IDNA = re.compile(
    '[\xdf\u1e9e\u03c2\u200c\u200d\u1806\u2024\u2488-\u249b\u33c2\u33c7\u33d8\ufe52'
    '\U0002f868\U0002f874\U0002f91f\U0002f95f\U0002f9bf]')

# RFC 3986 3.3 and 3.4, and % that starts no escape. Some servers take + in a path for a space
_NOT_IN_PATH = re.compile(rb"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*,;=:@/%]")
_NOT_IN_QUERY = re.compile(rb"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*,;=:@/%+?]")


def _url_parts(url: str) -> Tuple[_Origin, bytes]:
    """Return the origin of a URL, and the request target in origin form (RFC 9112 3.2.1)."""
    if not isinstance(url, str):
        raise TypeError("the URL must be a str, such as 'https://example.com/', not %s"
                        % type(url).__name__)
    # Long ones would fill the memory, as a server can redirect to them
    return _split_url(url) if len(url) <= 512 else _split_url.__wrapped__(url)


@functools.lru_cache(maxsize=1024)  # 7 us without
def _split_url(url: str) -> Tuple[_Origin, bytes]:
    bad = _NOT_IN_URL.search(url)
    if bad:
        raise ValueError('the URL has a control character or surrogate, %a, at index %d'
                         % (bad[0], bad.start()))
    match = _URL.fullmatch(url)
    if not match:
        raise ValueError('the URL must start with http:// or https://')
    scheme, authority, path, query = match.groups()
    target = _percent_encoded(_NOT_IN_PATH, path) or b'/'
    if query:
        target += b'?' + _percent_encoded(_NOT_IN_QUERY, query[1:])
    return _origin(scheme.lower(), authority), target


def _percent_encoded(not_allowed: re.Pattern[bytes], text: str) -> bytes:
    return not_allowed.sub(lambda byte: b'%%%02X' % byte[0][0], text.encode())


@functools.lru_cache(maxsize=1024)
def _origin(scheme: str, authority: str) -> _Origin:
    if scheme not in ('http', 'https'):
        raise ValueError('the scheme of the URL must be http or https, not %s' % _shown(scheme))
    if '@' in authority:
        raise ValueError('the URL has user information (RFC 9110 4.2.4): send an authorization '
                         'header instead')
    # No message has more of it: that may be a password, as in http://user:a/b@example.com
    match = _AUTHORITY.fullmatch(authority)
    if not match:
        raise ValueError(
            'the IPv6 address of the URL has a zone: give a name that a resolver of your own has '
            'the address and zone of' if _ZONE.match(authority) else
            'the URL must have a host, an IPv6 address in brackets, and no port but 1 to 65535')
    tls = scheme == 'https'
    port = int(match[2] or (443 if tls else 80))
    if not 1 <= port <= 65535:
        raise ValueError('the port of the URL must be 1 to 65535, not %d' % port)

    if match[1].startswith('['):
        address = _address(ipaddress.IPv6Address, match[1][1:-1])
        return _Origin(tls, address, port, (address,), match[1].lower().encode(), '')
    host_field = _encoded_name(match[1])
    host = _without_dot(host_field)
    if _NUMERIC_LAST_LABEL.fullmatch(host):
        address = _address(ipaddress.IPv4Address, host)
        return _Origin(tls, host, port, (address,), host_field.encode(), '')
    return _Origin(tls, host, port, (), host_field.encode(), '%s:%d' % (host, port))


def _address(kind: Callable[[str], Any], text: str) -> str:
    try:
        return str(kind(text))
    except ValueError:
        raise ValueError('the host of the URL is in brackets or ends in a number, but is not an '
                         'IP address: %s' % _shown(text)) from None


def _without_dot(name: str) -> str:
    return name[:-1] if name.endswith('.') else name


def _encoded_name(host: str) -> str:
    """Return a domain name in lower case and IDNA-encoded, with its trailing dot if it has one."""
    if len(host) > 254:  # Before encoding, which takes the square of that
        raise ValueError('the host of the URL is longer than 253 bytes')
    ambiguous = None if host.isascii() else _AMBIGUOUS_IN_IDNA.search(host)
    if ambiguous:
        raise UnicodeError('IDNA 2003 and 2008 make different names of %a in the host of the URL: '
                           'give its xn-- form, not %s' % (ambiguous[0], _shown(host)))
    try:
        name = (host if host.isascii() else host.encode('idna').decode('ascii')).lower()
    except UnicodeError as exception:
        raise UnicodeError('the host of the URL is not a name in IDNA: %s'
                           % _shown(host)) from exception
    if not _NAME.fullmatch(_without_dot(name)):
        raise ValueError('the host of the URL must be labels of 1 to 63 letters, digits, - or _, '
                         'separated by dots, in 253 bytes at the most, not %s' % _shown(host))
    return name


def _with_params(target: bytes, params: Iterable[Any]) -> bytes:
    """Append parameters to a target, with all but RFC 3986's unreserved characters encoded."""
    if isinstance(params, (list, tuple)) and not {str, bytes}.isdisjoint(map(type, params)):
        raise TypeError(_PARAMS_MESSAGE + _COMMA)  # Two letters would do for a pair
    params = list(params.items()) if isinstance(params, dict) else _pairs(params, _PARAMS_MESSAGE)
    for name, value in params:
        values = value if hasattr(value, '__len__') and not isinstance(value, str) else (value,)
        if any(part is None for part in (name, *values)):
            raise TypeError('params have None at %s: leave out what has no value' % _shown(name))
    try:
        query = urllib.parse.urlencode(params, doseq=True, quote_via=urllib.parse.quote)
    except UnicodeError as exception:
        raise UnicodeError('params have what UTF-8 has not: %s' % exception) from None
    separator = '?' if b'?' not in target else '' if target.endswith((b'?', b'&')) else '&'
    return target + (separator + query).encode() if query else target


def _request_head(
        version: bytes, method: bytes, host: bytes, target: bytes,
        headers: Iterable[Tuple[bytes, bytes]]) -> Tuple[bytes, Dict[bytes, bytes]]:
    """Return the head of a request, and those of its fields that frame it."""
    if not isinstance(method, bytes):
        raise TypeError("the method must be bytes, such as b'GET', not %s" % type(method).__name__)
    # A call to find what is there takes 500 instructions
    if (_lower_tokens.get(method) or _lower_token(method)) == b'connect':
        raise ValueError('the method CONNECT is not supported')

    parts = [method, b' ', target, b' ', version, b'\r\nhost: ', host, b'\r\n']
    framing: Dict[bytes, bytes] = {}
    for name, value in _pairs(headers, _HEADERS_MESSAGE) if headers != () else ():
        # The value may be a secret: no message has it
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError(
                _HEADERS_MESSAGE + _COMMA if isinstance(name, int) else
                "the header %s must be a pair of bytes, such as (b'name', b'value'), not of %s "
                "and %s: text.encode() or b'%%d' %% number makes bytes"
                % (_shown(name), type(name).__name__, type(value).__name__))
        control = _FIELD_VALUE_CONTROL.search(value)
        if control:
            raise ValueError('the value of the header %s has a control character, %a, at index %d'
                             % (_shown(name), control[0], control.start()))
        parts += (name, b': ', value, b'\r\n')
        lower_name = _lower_tokens.get(name) or _lower_token(name)
        if lower_name in _REQUEST_FRAMING:
            _add_field(framing, lower_name, value.strip(b' \t'))

    if framing:
        _check_framing(version, framing)
        if b'host' in framing:
            parts[5:7] = ()
    parts.append(b'\r\n')
    return b''.join(parts), framing


def _pairs(pairs: Any, message: str) -> List[Tuple[Any, Any]]:
    if isinstance(pairs, dict):
        raise TypeError(message + ', and not a dict: give its items()')
    try:
        return [(name, value) for name, value in pairs]
    except (TypeError, ValueError):
        raise TypeError(message + _COMMA) from None


_HEADERS_MESSAGE = "headers must be pairs of bytes, such as ((b'name', b'value'),)"
_PARAMS_MESSAGE = "params must be a dict, or pairs such as (('name', 'value'),)"
_COMMA = ', with a comma after a single one'
_REQUEST_FRAMING = {b'host', b'content-length', b'transfer-encoding', b'connection', b'expect'}


# Tokens in lower case, each checked once: a regular expression for each takes three times as long,
# and functools.lru_cache or __missing__ twice
_lower_tokens: Dict[bytes, bytes] = {}


def _lower_token(token: bytes) -> bytes:
    """Return a method or the name of a field in lower case. Raises ValueError."""
    if not _TOKEN.fullmatch(token):
        raise ValueError("a method or header name must be a token, of letters, digits and "
                         "!#$%%&'*+-.^_`|~ (RFC 9110 5.6.2), not %s" % _shown(token))
    return _remember(_lower_tokens, token, token.lower())


_MAX_REMEMBERED = 128  # Bytes: what servers choose must not fill the memory
_Value = TypeVar('_Value')


def _remember(cache: Dict[Any, _Value], key: Any, value: _Value) -> _Value:
    if len(key) <= _MAX_REMEMBERED:
        if len(cache) >= 512:
            cache.clear()
        cache[key] = value
    return value


def _check_framing(version: bytes, framing: Dict[bytes, bytes]) -> None:
    """Refuse what a server could read as another message (RFC 9112 6, 11.2)."""
    if not _HOST.fullmatch(framing.get(b'host', b'')):
        raise ValueError('the header host must be given once, as host or host:port')
    if not _CONTENT_LENGTH.fullmatch(framing.get(b'content-length', b'0')):
        raise ValueError('the header content-length must be given once, as a number')

    if b'transfer-encoding' in framing:
        if b'content-length' in framing or version == b'HTTP/1.0':
            raise ValueError('the header transfer-encoding must not be given with content-length '
                             'or in HTTP/1.0 (RFC 9112 6.1)')
        *codings, last = _tokens(framing[b'transfer-encoding'])
        if last != b'chunked' or not {b'chunked', b'identity'}.isdisjoint(codings) or \
                not all(map(_TOKEN.fullmatch, codings)):
            raise ValueError('the header transfer-encoding must be chunked, or a list of codings '
                             'that ends in it (RFC 9112 6.1)')


def _add_field(fields: Dict[bytes, bytes], name: bytes, value: bytes) -> None:
    # RFC 9110 5.3: the field lines of one name are one list
    fields[name] = b'%b, %b' % (fields[name], value) if name in fields else value


def _tokens(value: bytes) -> List[bytes]:
    """The members of a field that is a list of tokens, in lower case (RFC 9110 5.6.1)."""
    return [token.strip(b' \t') for token in value.lower().split(b',')]


def _shown(data: Any) -> str:
    """Data as messages show it: escaped, and cut to a sane length."""
    if not isinstance(data, (bytes, str)):
        return type(data).__name__
    return '%a%s' % (data[:80], '...' if len(data) > 80 else '')


# ---- Response head (RFC 9112 4, 5) --------------------------------------------------------------

# RFC 9112 4: status-line = HTTP-version SP status-code SP [ reason-phrase ], where some servers
# leave out the second SP
_STATUS_LINE = re.compile(rb'HTTP/1\.([0-9]) ([0-9]{3})(?: [^\0\r\n]*)?')

# RFC 9112 5.2: obs-fold = OWS CRLF RWS; the OWS is stripped from what it splits
_OBS_FOLD = re.compile(rb'\r\n[ \t]+')
# RFC 9112 5: field-line = field-name ":" OWS field-value OWS, where the value has no NUL, CR or LF
_FIELD_LINE = re.compile(_TCHAR + rb'+:[^\0\r\n]*')
_NUL, _CR, _LF = b'\0\r\n'
_BARE_LF = re.compile(rb'(?<!\r)\n')

_MAX_INTERIM_RESPONSES = 100  # More than any server sends on purpose: a 102 comes each 20 s


class _ReadHead:
    """The head of a response, read as it arrives: the final one, after any interim ones."""

    __slots__ = (
        '_interim_responses', '_limit', 'code', 'has_continued', 'headers', 'is_last', 'received',
        'since_1_1')

    def __init__(self, limit: int) -> None:
        self.code = b''
        self.since_1_1 = True
        self.headers: _Fields = ()
        self.received = b''  # In the end, what came after the head
        self.has_continued = False
        self.is_last = False  # As an interim response said (RFC 9112 9.6)
        self._limit = limit
        self._interim_responses = 0

    def feed(self, data: bytes) -> bool:
        """Take what is received; return whether the final head is whole."""
        if not data:
            raise HttpConnectionClosedError('the server closed the connection %s' % (
                'within the head of its response' if self.received else
                'after an interim response' if self._interim_responses else 'without a response'))
        searched = len(self.received)
        received = self.received + data if searched else data
        while True:
            end = _end_of_head(received, searched, self._limit)
            if end < 0:
                self.received = received
                return False
            self.code, self.since_1_1, self.headers = _parsed_head(received[:end])
            received = received[end + 4:]
            # RFC 9110 15.2; a 101 is final, as what follows it isn't HTTP
            if self.code >= b'200' or self.code == b'101' or self.code < b'100':
                self.received = received
                return True
            searched = 0
            self._skip_interim()

    def says_last(self) -> bool:
        """Whether the server reads nothing after the request that this responds to."""
        return _is_last(self.since_1_1, b','.join(
            [value for name, value in self.headers if name == b'connection']))

    def _skip_interim(self) -> None:
        self.has_continued |= self.code == b'100'
        self.since_1_1 = True  # An interim response doesn't say it by its version
        self.is_last |= self.says_last()
        self._interim_responses += 1
        if self._interim_responses > _MAX_INTERIM_RESPONSES:
            raise HttpInvalidResponse('the server sent more than %d interim responses'
                                      % _MAX_INTERIM_RESPONSES)


def _end_of_head(received: bytes, searched: int, limit: int) -> int:
    """Return where the line end and the empty line after a head are; -1 if it isn't whole."""
    end = received.find(b'\r\n\r\n', searched - 3 if searched > 3 else 0)
    if 0 <= end <= limit - 4:
        return end
    if end >= 0 or len(received) > limit:
        raise _too_long('head of the response is', limit)
    if not b'HTTP/1.'.startswith(received[:7]) or _BARE_LF.search(received, searched):
        _parsed_head(received)  # Raises: this can never become a head
    return end


def _too_long(part: str, limit: int) -> HttpHeaderTooLong:
    return HttpHeaderTooLong('the %s longer than %d bytes (max_header_length)' % (part, limit))


def _parsed_head(head: bytes) -> Tuple[bytes, bool, _Fields]:
    """Return the code of a response, whether it is of HTTP/1.1 or newer, and its headers."""
    status_line, _, field_lines = head.partition(b'\r\n')
    code, since_1_1 = _known_statuses.get(status_line) or _status(status_line)
    return code, since_1_1, _fields(field_lines) if field_lines else ()


_known_statuses: Dict[bytes, Tuple[bytes, bool]] = {}  # Most are the same few


def _status(line: bytes) -> Tuple[bytes, bool]:
    status = _STATUS_LINE.fullmatch(line)
    if not status:
        raise _line_error(1, 'HTTP/1.x, a code of three digits and a reason', line)
    return _remember(_known_statuses, line, (status[2], status[1] != b'0'))


# Field lines that servers repeat, half of a head or more, and that tell nothing of a user: to look
# them up takes a quarter of what it takes to parse them
_known_fields: Dict[bytes, Tuple[bytes, bytes]] = {}
_REPEATED = {
    b'accept-ranges', b'access-control-allow-origin', b'alt-svc', b'cache-control', b'connection',
    b'content-encoding', b'content-length', b'content-type', b'date', b'keep-alive', b'pragma',
    b'server', b'strict-transport-security', b'transfer-encoding', b'vary', b'via',
    b'x-content-type-options', b'x-frame-options', b'x-powered-by', b'x-xss-protection'}


def _fields(lines: bytes) -> _Fields:
    try:
        return _unfolded_fields(lines)
    except ValueError:
        unfolded = b' '.join([part.rstrip(b' \t') for part in _OBS_FOLD.split(lines)])
    try:
        return _unfolded_fields(unfolded)
    except ValueError:
        raise _field_error(lines) from None


def _unfolded_fields(lines: bytes) -> _Fields:
    separate_lines = lines.split(b'\r\n')
    without_ends = b''.join(separate_lines)
    # As numbers: to look for bytes takes ten times as long
    if _NUL in without_ends or _CR in without_ends or _LF in without_ends:
        raise ValueError
    known = map(_known_fields.get, separate_lines)
    return tuple([field or _field(line) for field, line in zip(known, separate_lines)])


def _field(line: bytes) -> Tuple[bytes, bytes]:
    name, colon, value = line.partition(b':')
    if not colon:
        raise ValueError
    name = _lower_tokens.get(name) or _lower_token(name)
    if name in _REPEATED:
        return _remember(_known_fields, line, (name, value.strip(b' \t')))
    return name, value.strip(b' \t')


def _field_error(lines: bytes) -> HttpInvalidResponse:
    for number, line in enumerate(lines.split(b'\r\n'), 2):
        is_fold = number > 2 and line.startswith((b' ', b'\t'))
        if not _FIELD_LINE.fullmatch(b'a:' + line if is_fold else line):
            break
    return _line_error(number, 'a name, a colon and a value', line)


def _line_error(number: int, expected: str, line: bytes) -> HttpInvalidResponse:
    return HttpInvalidResponse('line %d of the head must be %s, not %s'
                               % (number, expected, _shown(line)))


# ---- Body decoders (RFC 9112 6, 7.1) ------------------------------------------------------------
#
# Generators. They start with what came after a head, and are sent what is received: b'' at the end
# of the connection. They yield what that decodes to, and what came after the last byte of the
# body: None until that has arrived. Of a body that is whole from the start, any iterator will do.


_Decoded = Tuple[bytes, Optional[bytes]]
_Decoder = Generator[_Decoded, bytes, None]


def _known_length(length: int, data: bytes) -> Iterator[_Decoded]:
    """A body of as many bytes as content-length says (RFC 9112 6.2)."""
    if len(data) >= length:
        return iter(((data[:length], data[length:]),))  # A generator takes 3,000 instructions more
    return _rest_of_known_length(length, data)


def _rest_of_known_length(length: int, data: bytes) -> _Decoder:
    remaining = length
    while len(data) < remaining:
        remaining -= len(data)
        data = yield data, None
        if not data:
            raise HttpConnectionClosedError('the body ended after %d of its %d bytes'
                                            % (length - remaining, length))
    yield data[:remaining], data[remaining:]


def _until_close(data: bytes) -> _Decoder:
    """A body that ends with its connection (RFC 9112 6.3)."""
    data = yield data, None  # Which may be none yet
    while data:
        data = yield data, None
    yield b'', b''


class _Syntax(NamedTuple):
    whole: re.Pattern[bytes]
    start: re.Pattern[bytes]  # What a part of it may be
    name: str
    limited: str


# RFC 9112 7.1.1: chunk-size [ chunk-ext ] CRLF; 16 digits are 64 bits. RFC 9110 5.6.3 allows to
# drop whitespace before the extension
_CHUNK_LINE = _Syntax(
    re.compile(rb'([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\0\r\n]*)?\r\n'),
    re.compile(rb'(?:[0-9A-Fa-f]{1,16}[ \t]*(?:;[^\0\r\n]*)?\r?)?'),
    'a chunk size of 1 to 16 hex digits, then CRLF', 'chunk lines with extensions')
_END_OF_CHUNK = _Syntax(re.compile(rb'\r\n'), re.compile(rb'\r?'), 'CRLF after a chunk', '')

# RFC 9112 7.1.2: a trailer field, or the empty line after them
_TRAILER = _Syntax(
    re.compile(rb'(?:%b+:[^\0\r\n]*)?\r\n' % _TCHAR),
    re.compile(rb'(?:%b+(?::[^\0\r\n]*\r?)?|\r)?' % _TCHAR),
    'a trailer field or CRLF', 'trailers')


class _Chunked:
    """A body in the chunked transfer coding (RFC 9112 7.1); its trailers are checked and dropped.

    Chunks are found by offset, and joined: many tiny ones cost no more than their bytes. Without a
    limit of its lines, it is the body of a request, of which no message shows a byte.
    """

    __slots__ = ('_chunks', '_data', '_limit', '_limited_bytes', '_position')

    def __init__(self, limit: Optional[int], data: bytes) -> None:
        self._data = data
        self._position = 0  # How much of data is done with
        self._chunks: List[Union[bytes, memoryview]] = []
        self._limit = limit
        self._limited_bytes = 0

    def decoded(self) -> _Decoder:
        size = -1
        while size:
            if self._position == len(self._data):
                yield from self._more(b'')
            line = _CHUNK_LINE.whole.match(self._data, self._position) or \
                (yield from self._whole(_CHUNK_LINE))
            size, self._position = int(line[1], 16), line.end()
            if line.end() > line.end(1) + 2:
                self._limited_bytes += len(line[0])
                self._check_limit(self._limited_bytes, _CHUNK_LINE)
            elif size:
                self._take_repeated(b'\r\n' + line[0], size)

            end = self._position + size
            if self._data[end:end + 2] == b'\r\n':  # Without trailers, after the last one too
                self._chunks.append(self._data[self._position:end])
                self._position = end + 2
            else:
                yield from self._rest_of_chunk(size) if size else self._trailers()
        yield self._joined(), self._data[self._position:]

    def _take_repeated(self, between: bytes, size: int) -> None:
        """Take the chunks before one of the same size, which saves a third for chunks of 8 KiB."""
        data, start, end = self._data, self._position, self._position + size
        source = memoryview(data) if size > 1024 else data  # To be joined with one copy less
        while data.startswith(between, end):
            self._chunks.append(source[start:end])
            start = end + len(between)
            end = start + size
        self._position = start

    def _rest_of_chunk(self, size: int) -> _Decoder:
        end = self._position + size
        while end > len(self._data):
            self._chunks.append(self._data[self._position:])
            end -= len(self._data)
            yield from self._more(b'')
        self._chunks.append(self._data[self._position:end])
        self._position = end
        yield from self._whole(_END_OF_CHUNK)

    def _trailers(self) -> _Decoder:
        self._limited_bytes = 0
        line = b''
        while line != b'\r\n':
            line = (yield from self._whole(_TRAILER))[0]
            self._limited_bytes += len(line)
            self._check_limit(self._limited_bytes, _TRAILER)

    def _whole(self, syntax: _Syntax) -> Generator[_Decoded, bytes, re.Match[bytes]]:
        """Return the match of a line, once it is whole."""
        match = syntax.whole.match(self._data, self._position)
        while not match:
            rest = self._data[self._position:]
            if not syntax.start.fullmatch(rest):
                line = rest.partition(b'\n')[0]
                raise HttpInvalidResponse('the chunked body must have %s%s' % (
                    syntax.name, '' if self._limit is None else ', not %s' % _shown(line)))
            if len(rest) > 18:  # It is more than a size and CRLF
                self._check_limit(self._limited_bytes + len(rest), syntax)
            yield from self._more(rest)
            match = syntax.whole.match(self._data)
        self._position = match.end()
        return match

    def _more(self, rest: bytes) -> Generator[_Decoded, bytes, None]:
        """Hand over what is decoded, and go on with what is received then, after the rest."""
        received = yield self._joined(), None
        if not received:
            raise HttpConnectionClosedError('the body ended before its last chunk')
        self._data, self._position = rest + received if rest else received, 0

    def _joined(self) -> bytes:
        decoded = b''.join(self._chunks)
        self._chunks.clear()
        return decoded

    def _check_limit(self, number: int, syntax: _Syntax) -> None:
        if self._limit is not None and number > self._limit:
            raise _too_long('%s of the body are' % syntax.limited, self._limit)


# ---- Framing and persistence (RFC 9112 6.3, 9.3) ------------------------------------------------

# RFC 2068 19.7.1.1: Keep-Alive: timeout=N, one of its parameters
_KEEP_ALIVE_TIMEOUT = re.compile(rb'(?:^|[,; \t])timeout=([0-9]{1,9})', re.IGNORECASE)


def _request_decoder() -> _Decoder:
    """What holds the chunks of a request to their coding, as its server would."""
    decoder = _Chunked(None, b'').decoded()
    next(decoder)
    return decoder


@functools.lru_cache(maxsize=256)
def _stated_persistence(since_1_1: bool, connection: bytes, keep_alive: bytes = b'') -> float:
    """How many seconds a message lets its connection live on (RFC 9112 9.3); 0 if not at all."""
    if _is_last(since_1_1, connection):
        return 0
    # A second's margin, so that a request doesn't cross with the server's close
    stated = _KEEP_ALIVE_TIMEOUT.search(keep_alive)
    return max(0, int(stated[1]) - 1) if stated else float('inf')


def _is_last(since_1_1: bool, connection: bytes) -> bool:
    """Whether a message says that nothing is read after it (RFC 9112 9.3)."""
    options = _tokens(connection)
    return b'close' in options or (not since_1_1 and b'keep-alive' not in options)


def _response_framing(
        method: bytes, head: _ReadHead, limit: int) -> Tuple[Iterator[_Decoded], float]:
    """Return what decodes the body (RFC 9112 6.3), and the seconds to keep its connection for."""
    code, received = head.code, head.received
    fields = dict(head.headers)
    if len(fields) < len(head.headers):
        fields = {}
        for name, value in head.headers:
            _add_field(fields, name, value)

    coding, length = fields.get(b'transfer-encoding'), fields.get(b'content-length')
    # RFC 9112 6.1: with both, or in HTTP/1.0, an intermediary may have seen another end
    is_ambiguous = coding is not None and (length is not None or not head.since_1_1)
    connection, keep_alive = fields.get(b'connection', b''), fields.get(b'keep-alive', b'')
    stated_persistence: Callable[..., float] = _stated_persistence
    if len(connection) + len(keep_alive) > _MAX_REMEMBERED:
        stated_persistence = _stated_persistence.__wrapped__
    seconds = 0 if is_ambiguous or code == b'101' or head.is_last else \
        stated_persistence(head.since_1_1, connection, keep_alive)

    if method == b'HEAD' or code in (b'101', b'204', b'304'):
        # RFC 9110 8.6: a 204 states no body. Of one that does, who knows whether it comes
        states_body = code == b'204' and (coding is not None or length not in (None, b'0'))
        return _known_length(0, received), 0 if states_body else seconds
    if coding is not None and coding.lower() == b'chunked':
        return _Chunked(limit, received).decoded(), seconds
    if coding is not None and coding.lower() != b'identity':
        raise HttpInvalidResponse('the transfer-encoding of the response must be chunked, not %s'
                                  % _shown(coding))
    if length is None:
        return _until_close(received), 0
    return _known_length(_content_length(length), received), seconds


def _content_length(value: bytes) -> int:
    if value.isdigit() and len(value) < 20:  # A third of what the regular expression takes
        return int(value)
    # RFC 9110 8.6: a list of the same number, over and over, is that number
    number, *others = {member.strip(b' \t') for member in value.split(b',')}
    if others or not _CONTENT_LENGTH.fullmatch(number):
        raise HttpInvalidResponse('the content-length of the response must be one number, not %s'
                                  % _shown(value))
    return int(number)


# ---- Name resolution ----------------------------------------------------------------------------

_Resolve = Callable[..., Awaitable[Iterable[Any]]]
_ClearCache = Callable[..., Awaitable[None]]
_Hosts = Dict[bytes, Dict[int, List[bytes]]]  # By name in lower case and type of record: addresses

_DNS_ROUNDS = (0.5, 1, 2, 3, 3)  # Seconds for each name server: slow links take one and more
_TRUNCATED = -1  # An answer that was cut and has no address: no code of RFC 1035 4.1.1
_DNS_WORDS: Dict[Any, str] = {  # By error code, or class of exception
    2: 'error code 2 (SERVFAIL)', 5: 'error code 5 (REFUSED)',
    _TRUNCATED: 'an answer that was cut (TC) and has no address, and TCP is not used',
    DnsTimeout: 'no valid answer', DnsCnameChainTooLong: 'a chain of more than 20 CNAME records'}


def _hosts() -> _Hosts:
    hosts: _Hosts = {}
    for word, *names in _lines('/etc/hosts'):
        kind, address = _ip_address(word)
        for name in names if address else ():
            hosts.setdefault(name.lower(), {}).setdefault(kind, []).append(address)
    return hosts


def _name_servers() -> Tuple[Sequence[str], str]:
    """The name servers of /etc/resolv.conf that can be asked, and what to say of them."""
    words = [line[1] for line in _lines('/etc/resolv.conf')
             if line[0] == b'nameserver' and len(line) > 1]
    name_servers = list(filter(None, map(_name_server, words)))
    if name_servers:
        return name_servers[:3], ''  # As many as libc takes (MAXNS)
    if any(_ip_address(word.partition(b'%')[0])[1] for word in words):
        return (), '/etc/resolv.conf has only name servers of IPv6, which are not asked'
    return ('127.0.0.1',), ', as /etc/resolv.conf has none'  # resolv.conf(5)


def _lines(path: str) -> Iterator[List[bytes]]:
    """The words of each line that has any. As for libc, they need not be of UTF-8."""
    with open(path, 'rb') as file:
        for line in file:
            words = re.split(b'[#;]', line, maxsplit=1)[0].split()
            if words:
                yield words


def _ip_address(word: bytes) -> Tuple[int, bytes]:
    """The type of an IP address, and its bytes: none if libc takes it for no address."""
    for kind, family in ((TYPES.A, socket.AF_INET), (TYPES.AAAA, socket.AF_INET6)):
        with contextlib.suppress(OSError, ValueError):
            return kind, socket.inet_pton(family, word.decode())
    return 0, b''


def _name_server(word: bytes) -> str:
    with contextlib.suppress(OSError, ValueError):
        address = socket.inet_ntoa(socket.inet_aton(word.decode()))
        return '127.0.0.1' if address == '0.0.0.0' else address  # From where its answers come
    return ''


async def _get_host(hosts: _Hosts, name: Any, record_type: int) -> Any:
    if name not in hosts:
        return None
    if record_type not in hosts[name]:
        raise DnsRecordDoesNotExist  # What is there has no other addresses, of whichever type
    kind = IPv4AddressExpiresAt if record_type == TYPES.A else IPv6AddressExpiresAt
    # Never, but for that of an alias that a name server has given
    return tuple(kind(address, name.expires_at) for address in hosts[name][record_type])


class _NameServers:
    """The name servers to ask, round by round.

    aiodnsresolver leaves it half used, where the loop would finalise an asynchronous generator in
    a task, and ends each wait by cancelling the task, which is taken back at the next one.
    """

    def __init__(self, name_servers: Iterable[str], _: bytes) -> None:
        self._questions = iter([
            (seconds, name_server) for seconds in _DNS_ROUNDS for name_server in name_servers])
        self._loop = asyncio.get_running_loop()
        self._task: Any = asyncio.current_task()
        self._cancelling = 0
        self._deadline = float('inf')

    def __aiter__(self) -> _NameServers:
        return self

    async def __anext__(self) -> Tuple[float, Tuple[str, int]]:
        # The clock and timers of uvloop have whole milliseconds
        if self._loop.time() + 0.002 > self._deadline and _cancellations() > self._cancelling and \
                self._task.uncancel() > self._cancelling:
            raise asyncio.CancelledError  # From outside, in the same turn of the loop
        self._cancelling = _cancellations()
        for seconds, name_server in self._questions:
            self._deadline = self._loop.time() + seconds
            return seconds, (name_server, 53)
        raise StopAsyncIteration


async def _received(*args: Any) -> Any:
    try:
        return await aiodnsresolver.recvfrom(*args)
    except OSError as exception:
        raise DnsSocketError from exception  # Nobody listens there: aiodnsresolver would wait on


def _parsed(data: bytes) -> Any:
    message = aiodnsresolver.parse(data)
    if message.tc and not message.rcode and not any(
            record.qtype in (TYPES.CNAME, message.qd[0].qtype) for record in message.an):
        return message._replace(rcode=_TRUNCATED)  # aiodnsresolver takes it for no address
    return message


def _get_dns_resolver(get_logger_adapter: _GetLoggerAdapter) -> Tuple[_Resolve, _ClearCache]:
    """aiodnsresolver's, but without a task, a cancellation that stays, or an outdated answer."""
    made: Any = None
    answers = 0

    def name_servers_and_resolver() -> Any:
        nonlocal made
        if made is None:
            # Resolver reads both files by itself, and raises where libc goes on. So this is its
            # code, with other functions among its globals: in its module, they would be for all
            hosts, name_servers = _hosts(), _name_servers()
            resolver = types.FunctionType(Resolver.__code__, {
                **Resolver.__globals__, 'parse_etc_hosts': lambda: hosts,
                'parse_resolve_conf': lambda: name_servers[0],
                'parse': _parsed, 'recvfrom': _received}, 'Resolver', Resolver.__defaults__)
            made = name_servers, *resolver(
                get_host=_get_host, get_nameservers=_NameServers,
                get_logger_adapter=get_logger_adapter)
        return made

    async def resolve(host: str, record_type: int, **kwargs: Any) -> Any:
        nonlocal answers
        name_servers, resolve, clear_cache = name_servers_and_resolver()
        answers += 1
        if answers % 1024 == 0:
            await clear_cache(**kwargs)  # It has no bound but their time to live
        try:
            answer = await resolve(host, record_type, **kwargs)
        except BaseException as exception:
            # aiodnsresolver repeats an answer for as long as a frame of its own is alive
            _drop_tracebacks(exception)
            if not isinstance(exception, DnsError):
                raise exception.with_traceback(None)  # noqa: B904
            raise type(exception)(_dns_failure(exception, host, *name_servers)) from exception
        return answer[0] if isinstance(answer[0], tuple) else answer  # What _get_host returns

    async def clear_cache(**kwargs: Any) -> None:
        if made is not None:
            await made[2](**kwargs)

    with contextlib.suppress(OSError):  # They are read at the next name
        name_servers_and_resolver()
    return resolve, clear_cache


def _dns_failure(exception: DnsError, host: str, name_servers: Sequence[str], remark: str) -> str:
    if not name_servers:
        return remark
    key = exception.args[0] if isinstance(exception, DnsResponseCode) else type(exception)
    return 'the name servers (%s%s) %s%s' % (
        ', '.join(name_servers), remark,
        'know no A or AAAA record of it' if isinstance(exception, DnsRecordDoesNotExist) else
        'were asked %d times each, for up to %s seconds; in the end: %s' % (
            len(_DNS_ROUNDS), sum(_DNS_ROUNDS),
            _DNS_WORDS.get(key) or exception.__cause__ or repr(exception)),
        '' if '.' in host else '; a single label needs a search domain, which is not added')


def _drop_tracebacks(exception: Optional[BaseException]) -> None:
    while exception is not None:
        exception.__traceback__ = None
        _drop_tracebacks(exception.__cause__)
        exception = exception.__context__


# ---- Connection ---------------------------------------------------------------------------------

_Key = Tuple[str, str, int, bool]  # Host, IP address, port, TLS

# How many bytes may pass before other tasks get their turn, which is less than a megabyte with
# one call to send more; and what a call counts for at least
_TURN_BYTES = 851968
_CALL_BYTES = 1024

# Of one call to receive: in tiny chunks, more of them would take too long to decode in a turn.
# With TLS it is a record (RFC 8446 5.1), of which OpenSSL gives one at a time
_RECEIVE_BYTES = 65536
_TLS_RECORD_BYTES = 16384

# Of one call to send, which with TLS and a fast peer doesn't end by itself. The first one of a
# request is one TLS record, as a call for several may send some and then raise
_SEND_BYTES = 131072

# Of a request this large, the kernel may hold more than a slow peer takes before the deadline:
# while it waits, its connection looks at that each eighth of the timeout
_SLOW_BYTES = 16384
_LOOK_SHARE = 0.125

_NEVER = float('inf')

# Whether a connection waits for room to send more; and anew, where the event may be of before
# (with TLS, to send may want a read, after which it is tried again)
_NO_ROOM_WANTED, _READ_WANTED, _ROOM_WANTED, _ROOM_WANTED_ANEW = range(4)

_SO_NWRITE = 0x1024  # Of macOS

_ATTEMPT_SECONDS = 0.25  # RFC 8305 5: Connection Attempt Delay
_MAX_FAILURES = 6  # Addresses that a message names

# What connect_ex returns for an attempt that goes on; the second on Windows
_IN_PROGRESS = (errno.EINPROGRESS, getattr(errno, 'WSAEWOULDBLOCK', errno.EINPROGRESS))


class _Waiter(asyncio.Future):  # type: ignore[type-arg]
    """A future whose task goes on as soon as it is done, by a callback of the loop.

    Other futures have it wait for the loop's next turn: that takes 8,500 instructions and a
    system call more. It is awaited at once, by one task, and only callbacks of the loop end it,
    within which no task runs.
    """

    __slots__ = ('resume',)

    resume: Any  # What the task gives: its context and callback

    def add_done_callback(self, callback: Callable[..., Any], *, context: Any = None) -> None:
        # An empty context is false, but is the task's
        self.resume = contextvars.copy_context() if context is None else context, callback

    def remove_done_callback(self, _: Callable[..., Any]) -> int:
        self.resume = None
        return 1

    def cancel(self, *args: Any, **kwargs: Any) -> bool:
        is_cancelled = super().cancel(*args, **kwargs)
        resume, self.resume = self.resume, None  # It has the task, which may have this future
        if is_cancelled and resume is not None:  # By a task, in which another can't go on
            self.get_loop().call_soon(resume[1], self, context=resume[0])
        return is_cancelled

    def end(self, exception: Optional[Exception] = None) -> None:
        if self.done():
            return
        if exception is None:
            self.set_result(None)
        else:
            self.set_exception(exception)
        resume, self.resume = self.resume, None
        if resume is not None:
            resume[0].run(resume[1], self)
        del resume  # It has the task, whose traceback may have this frame


class _Connection:
    """A connected socket, with TLS or without: look, send now, wait for one event, rest, close.

    It is in one of four states:

        idle     in the pool: `_on_idle_event` is called at whatever happens
        busy     its owner runs, and looks and sends, neither of which waits
        waiting  its owner awaits `_waiter`, which the first event completes: bytes have arrived,
                 there is room to send more, wake() was called, or the deadline has passed
        closed

    Only bytes that go or come move the deadline. Its reader stays registered, since to add and
    remove it costs 28 us: what arrives is received at once, so that no event comes twice, but no
    more than one buffer ahead of the owner.
    """

    __slots__ = (
        '_bufsize', '_deadline', '_held', '_is_tls', '_on_idle_event', '_pid', '_poll', '_reads',
        '_received', '_recv', '_room', '_send', '_sent', '_sock', '_timer', '_timer_at', '_waiter',
        '_writes', 'credit', 'failure', 'idle_seconds', 'is_full', 'key', 'loop', 'rested_at',
        'thread', 'timeout')

    def __init__(
            self, loop: asyncio.AbstractEventLoop, sock: socket.socket, key: _Key,
            timeout: float, bufsize: int,
    ) -> None:
        self.key = key
        self.timeout = timeout
        self.credit = _TURN_BYTES  # How much may pass yet in this turn of the loop
        self.idle_seconds = 0.0  # How long it may rest after its response; 0 if not at all
        self.rested_at = 0.0  # When it was put into the pool, if it was
        self.loop = loop
        self._sock = sock
        self.thread = threading.get_ident()
        self._pid = os.getpid()
        is_tls = isinstance(sock, ssl.SSLSocket)
        self._bufsize = min(bufsize, _TLS_RECORD_BYTES if is_tls else _RECEIVE_BYTES)
        # read and write are what recv and send of an SSLSocket call, after checks
        self._recv: Callable[[int], bytes] = getattr(sock, 'read' if is_tls else 'recv')
        self._send: Callable[[Any], int] = getattr(sock, 'write' if is_tls else 'send')
        self._is_tls = False  # From the end of the handshake on
        self._received: Union[bytes, Exception, None] = None  # Ahead of the owner
        self.is_full = False  # Whether the last read took all it could: there may be more
        self.failure: Optional[Exception] = None  # Why it can't send
        self._sent = 0  # Bytes of this request
        self._held: Optional[int] = None  # Of these by the kernel, when it was last looked at
        self._room = _NO_ROOM_WANTED
        self._waiter: Optional[_Waiter] = None
        self._on_idle_event: Optional[Callable[[_Connection], None]] = None
        self._deadline, self._timer_at = _NEVER, 0.0
        self._timer: Optional[asyncio.TimerHandle] = None
        self._reads = self._writes = False  # What the loop watches for
        self._watch(True, False)
        self._poll: Optional[Callable[[int], Any]] = None  # Once it is asked for

    async def handshake(self) -> None:
        """Do the TLS handshake, which may take the timeout as a whole."""
        self._set_deadline(self.loop.time() + self.timeout)
        recv, self._recv, self.is_full = self._recv, self._handshake_now, True
        try:
            while self.look() is None:
                await self.event()
        finally:
            self._recv = recv
        self._is_tls = True

    def _handshake_now(self, _: int) -> bytes:
        """In place of _recv: TLS wants to read and to write, and fails, as it does then."""
        self._sock.do_handshake()  # type: ignore[attr-defined]
        return b'done'

    def look(self) -> Optional[bytes]:
        """Return what has arrived, without waiting: None if nothing has, b'' at the end."""
        data = self._received
        if data is None:
            # A read that finds nothing takes three times as long as to poll
            if self._reads and not self.is_full and \
                    not self._is_readable() and not self._pending():
                return None  # There will be an event
            return self._receive()
        self._received = None
        if isinstance(data, bytes):
            return data
        try:
            raise data
        finally:
            del data  # It has this frame, in its traceback

    def taken_failure(self) -> Exception:
        """Return why it can't send, to be raised: kept here, too, that would make a cycle."""
        failure, self.failure = self.failure, None
        assert failure is not None
        return failure

    def _is_readable(self) -> bool:
        if self._poll is None:
            self._poll = _poll_of(self._sock)
        return bool(self._poll(0))

    def _pending(self) -> bool:
        """Whether TLS has decrypted what was not asked for: no event tells of it."""
        return self._is_tls and self._sock.pending() > 0  # type: ignore[attr-defined]

    def _receive(self) -> Optional[bytes]:
        try:
            data = self._recv(self._bufsize)
        except (BlockingIOError, ssl.SSLWantReadError):
            self.is_full = False
            is_sent_again = self._room is _READ_WANTED
            if is_sent_again:
                self._room = _ROOM_WANTED
            self._watch(True, self._writes or is_sent_again)
            return None
        except ssl.SSLWantWriteError:
            self._watch(self._reads, True)
            return None
        if not data and isinstance(self.failure, ConnectionResetError):
            # The system says so once, and ends what is received then
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self.is_full = len(data) == self._bufsize
        self._deadline = _NEVER
        self.credit -= len(data) + _CALL_BYTES
        return data

    def is_quiet(self) -> bool:
        """Whether nothing has arrived, the end of the connection included."""
        try:
            return self._received is None and (not self._is_readable() or self._receive() is None)
        except (OSError, ValueError):  # TLS that is closed raises a ValueError
            return False

    def send_now(self, data: Union[bytes, memoryview]) -> int:
        """Send what can be without waiting, and return how many bytes that is: none where that
        fails, and `failure` says why.
        """
        if len(data) > _SEND_BYTES:
            data = memoryview(data)[:_SEND_BYTES]
        if self._is_tls and not self._sent:
            data = memoryview(data)[:_TLS_RECORD_BYTES]
        try:
            sent = self._send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            self._room = _ROOM_WANTED
            return 0
        except ssl.SSLWantReadError:
            self._room = _READ_WANTED  # It is writable all the time
            return 0
        except OSError as exception:
            self.failure = exception.with_traceback(None)
            self.is_full = True  # Look for what the server said before
            return 0
        self._room = _NO_ROOM_WANTED if sent == len(data) else _ROOM_WANTED
        self._sent += sent
        self._deadline = _NEVER
        self.credit -= sent
        return sent

    def send_no_more(self) -> None:
        """Wait for no room, which would end each wait from when there is some."""
        self._room = _NO_ROOM_WANTED

    def event(self, is_bounded: bool = True) -> _Waiter:
        """Wait for an event; asyncio.TimeoutError comes at the deadline, unless it is unbounded.

        To be called where look() has returned None.
        """
        self.credit = _TURN_BYTES
        self._waiter = waiter = _Waiter(loop=self.loop)
        waiter.resume = None
        if self._room >= _ROOM_WANTED:
            if self._writes:
                self._room = _ROOM_WANTED_ANEW
            else:
                self._watch(self._reads, True)
        if not is_bounded:
            self._deadline = _NEVER
        elif self._deadline == _NEVER:
            self._set_deadline(self.loop.time() + self.timeout)
        elif self._timer is None:
            self._set_deadline(self._deadline)  # It has passed meanwhile
        return waiter

    def pause(self) -> _Waiter:
        """Wait for wake(), also where the connection is closed."""
        self._deadline = _NEVER
        self._waiter = waiter = _Waiter(loop=self.loop)
        waiter.resume = None
        return waiter

    async def turn(self) -> None:
        """Let other tasks run, after much was sent or received without a wait."""
        self.credit = _TURN_BYTES
        await asyncio.sleep(0)

    def wake(self, _: Any = None) -> None:
        """End the wait."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.end()

    def _on_readable(self) -> None:
        if self._on_idle_event is not None:
            if not self.is_quiet():
                self._on_idle_event(self)
            return
        if self._received is not None:
            self._watch(False, self._writes)  # One buffer is all that is read ahead
            return

        try:
            self._received = self._receive()
        except Exception as exception:
            self._received = exception.with_traceback(None)
        if self._received is not None:
            self.wake()
        elif self._is_tls and self._deadline != _NEVER:
            self._deadline = self.loop.time() + self.timeout  # A part of a record is no silence

    def _on_writable(self) -> None:
        if self._room is _ROOM_WANTED_ANEW:
            self._room = _ROOM_WANTED  # This event may be as old as the last wait
        elif self._room is _ROOM_WANTED and self._waiter is not None:
            self.wake()
        else:
            self._watch(self._reads, False)
            if self._room <= _READ_WANTED:
                self._on_readable()  # TLS had to write in order to read

    def _on_timer(self) -> None:
        self._timer = None
        if self._on_idle_event is None:
            if self._waiter is None or self._deadline == _NEVER:
                return  # It is set again by the next wait
            self._extend_deadline()
        if self.loop.time() < self._deadline:
            self._set_deadline(self._deadline)
        elif self._on_idle_event is not None:
            self._on_idle_event(self)
        else:
            self._waiter.end(asyncio.TimeoutError())  # type: ignore[union-attr]

    def _extend_deadline(self) -> None:
        """Give a peer more time that is slow, but takes what the kernel holds for it."""
        before, self._held = self._held, _unsent_by_kernel(self._sock)
        now = self.loop.time()
        if before is not None and self._held < before:
            self._deadline = now + self.timeout
        elif before is None and self._held and now >= self._deadline:
            self._deadline = now + self.timeout * _LOOK_SHARE  # Then it is known

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        # A timer that is earlier sets itself again when it finds the deadline moved
        if self._timer is None or self._timer_at > deadline or self._sent >= _SLOW_BYTES:
            self._set_timer(deadline)

    def _set_timer(self, at: float) -> None:
        if self._sent >= _SLOW_BYTES and self._on_idle_event is None:
            at = min(at, self.loop.time() + self.timeout * _LOOK_SHARE)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at  # A timer of uvloop that is due has no when()
        self._timer = self.loop.call_at(at, self._on_timer, context=contextvars.Context())

    def _watch(self, reads: bool, writes: bool) -> None:
        """Have the loop watch for what is asked for, by changes alone: each costs 14 us."""
        if reads != self._reads:
            self._reads = reads
            if reads:
                self._add(self.loop.add_reader, self._on_readable)
            else:
                self.loop.remove_reader(self._sock.fileno())
        if writes != self._writes:
            self._writes = writes
            if writes:
                self._add(self.loop.add_writer, self._on_writable)
            else:
                self.loop.remove_writer(self._sock.fileno())

    def _add(self, add: Callable[..., None], callback: Callable[[], None]) -> None:
        # In a context of its own: that of the caller would live as long as the connection
        contextvars.Context().run(add, self._sock.fileno(), callback)

    def rest(self, on_event: Callable[[_Connection], None]) -> None:
        """Be idle until an event: bytes, the end of the connection, or of `idle_seconds`."""
        self._on_idle_event = on_event
        self.rested_at = self.loop.time()
        if not self._reads:
            self._watch(True, self._writes)
        self._set_deadline(self.rested_at + self.idle_seconds)
        if self._received is not None or self._pending():
            on_event(self)

    def wake_up(self) -> bool:
        """Be idle no more, and return whether that is in time."""
        self._on_idle_event = None
        self._sent, self._held, self.is_full = 0, None, False
        self.credit = _TURN_BYTES
        is_in_time = self.loop.time() < self._deadline
        self._deadline = _NEVER
        return is_in_time

    def close(self) -> None:
        """Close; TLS sends its close_notify, but doesn't wait for the peer's."""
        self._on_idle_event = self._waiter = None
        if os.getpid() != self._pid:  # What is registered is the parent's, and so is TLS
            self._sock.close()
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._sock.fileno() != -1 and not self.loop.is_closed():
            self._watch(False, False)  # Before the number of the socket is another one's
        if self._is_tls:
            with contextlib.suppress(OSError, ValueError):
                self._sock.unwrap()  # type: ignore[attr-defined]
        self._sock.close()

    def abandon(self) -> None:
        """Close from the garbage collector: on any thread, at any time."""
        if threading.get_ident() == self.thread or os.getpid() != self._pid:
            self.close()
            return
        # A loop that has ended, but is not closed yet, forgets it uncalled when it is
        close = functools.partial(self.close)
        weakref.finalize(close, self.close)
        with contextlib.suppress(RuntimeError):  # The loop is closed
            self.loop.call_soon_threadsafe(close, context=contextvars.Context())


def _unsent_by_kernel(sock: socket.socket) -> int:
    """How many bytes the kernel holds that the peer hasn't taken yet; 0 if it doesn't say."""
    if sys.platform == 'linux':
        held = bytearray(4)
        with contextlib.suppress(OSError):
            fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, held)
        return int.from_bytes(held, sys.byteorder)
    if sys.platform == 'darwin':
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    return 0


def _poll_of(sock: socket.socket, is_to_write: bool = False) -> Callable[[int], Any]:
    """What asks whether a socket is ready: a read that finds nothing takes three times as long."""
    if not hasattr(select, 'poll'):  # On Windows
        return lambda _: True
    poll = select.poll()
    poll.register(sock, select.POLLOUT if is_to_write else select.POLLIN)
    return poll.poll


class _Attempts:
    """Attempts to connect to the addresses of a host, which overlap, in this task (RFC 8305 5).

    The next one starts when one fails, or 250 ms after the last one. The first to connect wins.
    Why others fail is written to `failures`, by address. `makes_room` is to close something if no
    descriptor is free, and return whether to try again.
    """

    __slots__ = (
        '_deadline', '_error', '_failures', '_get_sock', '_loop', '_makes_room', '_pending',
        '_port', '_untried', '_waiter', '_winners')

    def __init__(  # noqa: PLR0913
            self, loop: asyncio.AbstractEventLoop, get_sock: Callable[..., socket.socket],
            makes_room: Callable[[Optional[int]], bool], addresses: Iterable[str], port: int,
            failures: Dict[str, str]) -> None:
        self._loop = loop
        self._get_sock = get_sock
        self._makes_room = makes_room
        self._untried = list(addresses)
        self._port = port
        self._deadline = 0.0
        self._waiter: Optional[_Waiter] = None
        self._pending: Dict[socket.socket, str] = {}
        self._winners: List[Tuple[socket.socket, str]] = []
        self._failures = failures
        self._error: Any = None  # Of the first that failed

    async def winner(self, seconds: float) -> Tuple[socket.socket, str]:
        """Return a connected socket and its address.

        Raises what the first attempt failed with, or asyncio.TimeoutError after `seconds`.
        """
        try:
            while not self._winners:
                if not self._untried and not self._pending:
                    raise self._error
                if not self._untried or self._start(self._untried.pop(0)):
                    await self._decision(seconds)
            return self._winners.pop(0)
        except asyncio.TimeoutError:
            for address in self._pending.values():
                self._failures[address] = _no_answer(seconds)
            self._failures.update(dict.fromkeys(self._untried, 'not tried in that time'))
            raise
        finally:
            self._error = None  # Its traceback has this frame
            for sock in self._pending:
                self._loop.remove_writer(sock.fileno())
                sock.close()
            for sock, _ in self._winners:
                sock.close()

    async def _decision(self, seconds: float) -> None:
        """Wait until an attempt has ended, or for as long as the next one has to."""
        now = self._loop.time()
        self._deadline = self._deadline or now + seconds
        next_at = now + _ATTEMPT_SECONDS if self._untried else self._deadline
        self._waiter = _Waiter(loop=self._loop)
        self._waiter.resume = None
        timer = self._loop.call_at(min(next_at, self._deadline), self._waiter.end)
        try:
            await self._waiter
        finally:
            self._waiter = None
            timer.cancel()
        if not self._winners and self._loop.time() >= self._deadline:
            raise asyncio.TimeoutError

    def _start(self, address: str, is_last_try: bool = False) -> bool:
        """Start an attempt, and return whether it is to be waited for."""
        try:
            peer = _zoned(address, self._port) if '%' in address else (address, self._port)
            sock = _new_sock(self._get_sock, address)
        except OSError as exception:
            if not is_last_try and self._makes_room(exception.errno):
                return self._start(address, True)
            self._fail(address, exception)
            return False
        self._pending[sock] = address
        error = sock.connect_ex(peer)
        if error not in _IN_PROGRESS:
            self._decide(sock, error)
        elif hasattr(select, 'poll') and _poll_of(sock, True)(0):
            self._decide(sock)  # As within this machine
        else:
            self._loop.add_writer(sock.fileno(), self._on_writable, sock)
        return sock in self._pending

    def _on_writable(self, sock: socket.socket) -> None:
        self._loop.remove_writer(sock.fileno())
        self._decide(sock)

    def _decide(self, sock: socket.socket, error: int = 0) -> None:
        address = self._pending.pop(sock)
        error = error or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error and _is_own_peer(sock, self._port):
            error = errno.ECONNREFUSED
        if error:
            sock.close()
            self._fail(address, OSError(error, os.strerror(error)))
            return
        self._winners.append((sock, address))
        self._end_wait()

    def _fail(self, address: str, error: OSError) -> None:
        self._error = self._error or error
        self._failures[address] = error.strerror or str(error)
        self._end_wait()

    def _end_wait(self) -> None:
        if self._waiter is not None:
            self._waiter.end()


def _is_own_peer(sock: socket.socket, port: int) -> bool:
    """Whether a socket is connected to itself: its own port was the one that nobody listens on."""
    with contextlib.suppress(OSError):  # Of a connection that is reset by now
        name = sock.getsockname()
        return bool(name[1:2] == (port,) and name == sock.getpeername())
    return False


def _zoned(address: str, port: int) -> Tuple[Any, ...]:
    address, _, zone = address.partition('%')
    return address, port, 0, int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)


def _no_answer(seconds: float) -> str:
    return 'no answer for %s seconds (socket_timeout)' % seconds


def _failed_addresses(failures: Dict[str, str], host: str) -> str:
    """Each address with the reason of its failure, but not more than make a readable message."""
    listed = [reason if address == host else '%s: %s' % (address, reason)
              for address, reason in failures.items()]
    if len(listed) > _MAX_FAILURES:
        listed[_MAX_FAILURES:] = ['and %d more' % (len(listed) - _MAX_FAILURES)]
    return '; '.join(listed)


def _tls_sock(context: ssl.SSLContext, sock: socket.socket, host: str) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(
            sock, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=False)
    except OSError as exception:
        # Of a connection that is reset by now, Python before 3.13 leaves what it has made open
        step = exception.__traceback__ and exception.__traceback__.tb_next
        while step:
            made = step.tb_frame.f_locals.get('self')
            if isinstance(made, ssl.SSLSocket):
                made.close()
            step = step.tb_next
        raise


def _new_sock(get_sock: Callable[..., socket.socket], address: str) -> socket.socket:
    if ':' not in address:
        sock = get_sock()
    else:
        try:
            sock = get_sock(socket.AF_INET6)
        except TypeError as exception:
            raise TypeError('get_sock must take socket.AF_INET6 as its argument to connect to %s'
                            % address) from exception
    if sock.gettimeout() != 0:
        sock.setblocking(False)
    return sock


def _get_sock(family: int = socket.AF_INET) -> socket.socket:
    # Linux needs one system call less for a socket that doesn't block; others get there later
    kind = socket.SOCK_STREAM | getattr(socket, 'SOCK_NONBLOCK', 0)
    sock = socket.socket(family, kind, socket.IPPROTO_TCP)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


# ---- Request body -------------------------------------------------------------------------------

# Pieces of a request are gathered up to this size, to leave in one packet
_PACKET_BYTES = 65536

_CHUNKS_ADVICE = '; lowhaio sends chunks as they are given, and lowhaio_chunked encodes them'

# RFC 9110 10.1.1: how long to wait for a 100, which some servers never send
_CONTINUE_SECONDS = 1

# The states of a request, in their order
_HELD, _RUNNING, _ENDED, _SENT, _STOPPED = range(5)

# What a body waits for that awaits nothing, but yields: another turn of the loop, which is over
_TURN, _TURN_IS_OVER = object(), object()
_NO_FUTURE = (None, _TURN, _TURN_IS_OVER)


@types.coroutine
def _no_more_now() -> Generator[None, None, None]:
    """Where the steps of a request stop, as the connection takes no more in this turn."""
    yield _NO_MORE_NOW


_NO_MORE_NOW: Any = object()


class _NothingSentError(Exception):
    """A connection of the pool was dead before it took a byte of the request."""


class _Request:
    """A request on its way: its head, and the caller's body, which is run step by step.

    It is in one of five states, in this order:

        held      its head is sent, and its body waits for a 100 (Continue)
        running   the caller's body is asked for more, or waits: then `_waits_for` says for what
        ended     all of it is there
        sent      all of it is sent
        stopped   no more of it is sent, as it failed, or as nobody wants it any more

    The steps are one coroutine of our own, which asks the caller's body, holds it to its framing,
    gathers and sends. Whoever waits for the connection runs it, in progress(), until it waits as
    well; what it waits for then ends the wait for the connection. Thus it runs in the caller's
    task, without one of its own. It outlives a connection that is dead before it takes a byte.
    """

    __slots__ = (
        '_body', '_cancellation', '_chunks', '_connection', '_decoder', '_hold', '_remaining',
        '_steps', '_thrown', '_unsent', '_waits_for', 'framing', 'has_body', 'has_sent', 'state')

    def __init__(
            self, head: bytes, framing: Dict[bytes, bytes],
            body: Callable[..., AsyncIterable[Any]],
            body_arguments: Tuple[Any, Any],
    ) -> None:
        if not callable(body):
            raise TypeError('body must be a function that returns an asynchronous iterable, not '
                            '%s: %s' % (type(body).__name__, _body_advice(body)))
        self.framing = framing
        self.has_body = bool(framing) or body is not empty_async_iterator
        self.has_sent = False  # Any of it
        self.state = _ENDED
        self._connection: Any = None
        self._unsent: List[Union[bytes, memoryview]] = [head]
        self._waits_for: Any = None
        self._chunks: Any = None  # The caller's body, until it has ended
        if self.has_body:
            self._set_body(body, *_body_arguments(*body_arguments))

    def _set_body(
            self, body: Callable[..., AsyncIterable[Any]], args: Tuple[Any, ...],
            kwargs: Dict[str, Any],
    ) -> None:
        self._body = functools.partial(body, *args, **kwargs)
        self._hold: Any = None  # The timer that ends it
        self._steps: Any = None  # From the first one on
        self._thrown: Optional[BaseException] = None  # At what it waits for, in the next step
        # From outside, which the body hasn't answered yet; and how many the task had then
        self._cancellation: Optional[Tuple[asyncio.CancelledError, int]] = None
        self._decoder = None
        self._remaining: float = int(self.framing.get(b'content-length', 0))
        if b'transfer-encoding' in self.framing:
            self._decoder, self._remaining = _request_decoder(), _NEVER
        if self._remaining and b'100-continue' in _tokens(self.framing.get(b'expect', b'')):
            self.state = _HELD
        elif self._remaining or body is not empty_async_iterator:
            self.state = _RUNNING
        else:
            self.has_body = False

    def attach(self, connection: _Connection) -> None:
        """Go on with another connection: the first one, or after one that was dead."""
        if self._waits_for not in _NO_FUTURE:
            self._waits_for.remove_done_callback(self._connection.wake)
            self._waits_for.add_done_callback(connection.wake)
        self._connection = connection
        if self.state is _HELD:
            self._set_hold(connection.loop)

    def progress(self) -> None:
        """Run the caller's body and send, as far as that goes without a wait."""
        if self.state is _RUNNING and self._is_ready():
            self._step()
        if self._unsent and (self.state is not _RUNNING or self._waits_for is not None):
            self._flush()
        if self.state is _ENDED and not self._unsent:
            self.state = _SENT

    async def event(self) -> None:
        """Wait until there is something to do: for the connection, or for the caller's body."""
        connection = self._connection
        try:
            if connection.credit <= 0:
                await connection.turn()
            else:
                # While the caller's body is all that is waited for, no timeout runs
                await connection.event(self.state >= _ENDED or (
                    self.state is _RUNNING and bool(self._unsent)))
        except asyncio.CancelledError as exception:
            if not await self.answers(exception):
                raise

    async def answers(self, cancellation: asyncio.CancelledError) -> bool:
        """Have the caller's body answer to a cancellation, be it from outside or of a timeout of
        its own: with a response that comes meanwhile, it would be lost. False if it doesn't wait.
        """
        if not self._pass_on(cancellation):
            return False
        del cancellation  # It may come back through here, with this frame in its traceback
        is_answered = False
        while self._waits_for is not None and not is_answered:
            if self._is_ready():
                self._step()
                is_answered = not _COUNTS_CANCELLATIONS or not self._is_cancelled()
            else:
                try:
                    await self._connection.pause()
                except asyncio.CancelledError as exception:
                    self._pass_on(exception)
        return True

    def _set_hold(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._hold is not None:
            self._hold.cancel()
        self._hold = loop.call_later(_CONTINUE_SECONDS, self.go_on, context=contextvars.Context())

    def go_on(self) -> None:
        """Hold the body back no longer."""
        if self.state is _HELD:
            self.state = _RUNNING
            self._hold.cancel()
            self._connection.wake()

    def is_unsent_by(self, connection: _Connection) -> bool:
        """Whether another connection may be tried: its server may have closed this one before."""
        return not self.has_sent and connection.rested_at > 0

    def persistence(self, version: bytes) -> float:
        """How many seconds the request lets its connection live on, once it is sent."""
        if self.state is _STOPPED:
            return 0
        if not self.framing and version == b'HTTP/1.1':
            return _NEVER
        return _stated_persistence(version == b'HTTP/1.1', self.framing.get(b'connection', b''))

    async def stop(self) -> None:
        """Send no more; end the caller's body, in the middle of whatever it waits for, and close
        it. Raises CancelledError for a cancellation from outside that came meanwhile.
        """
        if self.state >= _SENT:
            return
        self.state = _STOPPED
        self._unsent.clear()  # It keeps the caller's buffers from being resized
        if self._connection is not None:
            self._connection.send_no_more()
        if not self.has_body:
            return
        if self._hold is not None:
            self._hold.cancel()
        try:
            await self._interrupt()
        finally:
            chunks, self._chunks, self._steps = self._chunks, None, None
            self._cancellation = None
            aclose = getattr(chunks, 'aclose', None)
            if aclose is not None:
                await self._closed(aclose)

    async def _interrupt(self) -> None:
        """Raise CancelledError where the caller's body waits, and step on until it has ended."""
        if self._waits_for is None:
            return
        if self._thrown is None and not self._is_cancelled():
            self._thrown = asyncio.CancelledError()
        cancellation = None  # From outside, since
        try:
            while self._waits_for is not None:
                if self._is_ready():
                    self._step()
                else:
                    cancellation = await self._pause(cancellation)
        except asyncio.CancelledError:
            if cancellation is None and self._is_cancelled():
                raise
        try:
            if cancellation is None and self._is_cancelled():
                cancellation = self._cancellation[0]  # type: ignore[index]
            if cancellation is not None:
                raise cancellation
        finally:
            del cancellation  # It has this frame, in its traceback

    async def _pause(
            self, before: Optional[asyncio.CancelledError],
    ) -> Optional[asyncio.CancelledError]:
        """Wait for what the stopped body waits for, and return a cancellation from outside. The
        first one lets the body clean up, which it does already; the next one reaches it.
        """
        try:
            await self._connection.pause()
        except asyncio.CancelledError as exception:
            if before is None and not self._is_cancelled():
                return exception
            self._pass_on(exception)
        return before

    async def _closed(self, aclose: Callable[[], Awaitable[None]]) -> None:
        try:
            await aclose()
        except Exception as exception:
            raise self._body_error(exception) from exception

    def _pass_on(self, exception: asyncio.CancelledError) -> bool:
        """Cancel what the caller's body waits for, as its task would; False if it doesn't wait."""
        waits_for = self._waits_for
        if waits_for is None:
            return False
        self._cancellation = exception, _cancellations()
        # Python 3.8 has no message
        arguments = exception.args if sys.version_info >= (3, 9) else ()
        if waits_for in _NO_FUTURE or not waits_for.cancel(*arguments):
            self._thrown = exception
        return True

    def _is_cancelled(self) -> bool:
        # Unless the body has taken it back, as it was of a timeout of its own
        return self._cancellation is not None and _cancellations() >= self._cancellation[1]

    def _is_ready(self) -> bool:
        waits_for = self._waits_for
        return self._thrown is not None or waits_for in (None, _TURN_IS_OVER) or (
            waits_for is not _TURN and waits_for.done())

    def _step(self) -> None:
        """Run the steps until they wait."""
        if self._steps is None:
            self._steps = self._run()
        thrown, self._thrown = self._thrown, None
        waits_for, self._waits_for = self._waits_for, None
        if thrown is not None and waits_for not in _NO_FUTURE:
            waits_for.remove_done_callback(self._connection.wake)
        try:
            while True:
                awaited = self._steps.send(None) if thrown is None else self._steps.throw(thrown)
                if awaited is _NO_MORE_NOW:
                    return
                thrown = self._wait_for(awaited)
                if thrown is None:
                    return
        except StopIteration:
            if self.state is _RUNNING:
                self.state = _ENDED
        except asyncio.CancelledError:
            if self._cancellation is None:
                raise
            raise self._cancellation[0] from None  # The very one
        finally:
            thrown = waits_for = None  # Their tracebacks may have this frame

    def _wait_for(self, awaited: Any) -> Optional[RuntimeError]:
        """Have the end of what the caller's body awaits wake us; or return why a task would not.

        It is not awaited itself: its CancelledError would be taken for one from outside.
        """
        loop = self._connection.loop
        if awaited is None:
            self._waits_for = _TURN
            loop.call_soon(self._on_turn)
            return None
        if getattr(awaited, '_asyncio_future_blocking', None) is not True:
            return RuntimeError('the body of the request awaited what is no future: %r' % awaited)
        if awaited is asyncio.current_task():
            return RuntimeError('the body of the request awaited the task itself that it runs in')
        if awaited.get_loop() is not loop:
            return RuntimeError('the body of the request awaited a future that is attached to a '
                                'different loop: %r' % awaited)
        awaited._asyncio_future_blocking = False
        awaited.add_done_callback(self._connection.wake)  # Which has no reference to self
        self._waits_for = awaited
        return None

    def _on_turn(self) -> None:
        if self._waits_for is _TURN:
            self._waits_for = _TURN_IS_OVER
            self._connection.wake()

    async def _run(self) -> None:
        """The steps: take each chunk of the caller's body, and send a packet's worth of them."""
        next_chunk = self._begun()
        ask: Any = functools.partial(_unhooked, next_chunk)
        is_coded = self._decoder is not None
        gathered = 0
        while True:
            try:
                chunk = await ask()
            except StopAsyncIteration:
                break
            except Exception as exception:
                raise self._body_error(exception) from exception
            if self.state is _STOPPED:
                return
            ask = next_chunk
            self._cancellation = None
            if is_coded or chunk.__class__ is not bytes:
                chunk = await self._checked(chunk)
            size = len(chunk)
            self._remaining -= size
            if self._remaining < 0:
                self._refuse(ValueError(self._excess()))

            connection, sent = self._connection, 0
            if size < _PACKET_BYTES or self._unsent:
                connection.credit -= _CALL_BYTES
            else:
                sent = connection.send_now(chunk)
            if sent < size:
                self._unsent.append(memoryview(chunk)[sent:] if sent else chunk)
                gathered += size
            del chunk  # A view of it would keep the caller from resizing it
            if gathered >= _PACKET_BYTES or connection.credit <= 0:
                gathered = await self._send_gathered(gathered)
        self._chunks = None
        self._check_end()

    async def _send_gathered(self, gathered: int) -> int:
        """Send a packet's worth, or what the turn allows; return how much is still gathered."""
        if gathered >= _PACKET_BYTES:
            while not self._flush():  # Before the next one: its memory may be used again
                await _no_more_now()
            gathered = 0
        if self._connection.credit <= 0:
            self._flush()  # What is there isn't held back by a body that only computes
            await _no_more_now()
        return gathered

    def _begun(self) -> Callable[[], Awaitable[Any]]:
        try:
            self._chunks = _async_iterator(self._body())
            return self._chunks.__anext__  # type: ignore[no-any-return]
        except Exception as exception:
            raise self._body_error(exception) from exception

    def _excess(self) -> str:
        if b'content-length' in self.framing:
            return 'it has more bytes than content-length says'
        return ('it has bytes, but neither content-length nor transfer-encoding is given: '
                "(b'content-length', b'%d' % len(data)) in headers is enough")

    def _check_end(self) -> None:
        if not self._remaining or self.state is _STOPPED:
            return
        if self._decoder is not None:
            self._refuse(ValueError('the body ended before its last chunk' + _CHUNKS_ADVICE))
        length = int(self.framing[b'content-length'])
        self._refuse(ValueError('the body ended after %d of its %d bytes'
                                % (length - self._remaining, length)))

    async def _checked(self, chunk: Any) -> Union[bytes, memoryview]:
        """Return a chunk that can't be changed. One that has chunks of the coding, which may be
        tiny, is looked through some at a time, so that other tasks get their turn.
        """
        try:
            data = _constant(chunk)
            for start in range(0, len(data) if self._decoder is not None else 0, _PACKET_BYTES):
                self._decode(bytes(data[start:start + _PACKET_BYTES]))
                if self._connection.credit <= 0:
                    await _no_more_now()
        except (TypeError, ValueError) as exception:
            self._refuse(exception)
        if self._decoder is not None:
            self._remaining = max(self._remaining, len(data))  # It is taken off
        return data

    def _decode(self, data: bytes) -> None:
        """Hold a part of the body to the chunked coding."""
        unused: Optional[bytes] = data
        if self._remaining:
            try:
                decoded, unused = self._decoder.send(data)  # type: ignore[union-attr]
            except HttpDataError as exception:
                raise ValueError('%s%s' % (exception, _CHUNKS_ADVICE)) from None
            self._connection.credit -= _framing_cost(data, decoded)
            self._remaining = _NEVER if unused is None else 0
        if unused:
            raise ValueError('it goes on after its last chunk' + _CHUNKS_ADVICE)

    def _flush(self) -> bool:
        """Send what the connection takes in this turn, and return whether that is all."""
        connection, unsent = self._connection, self._unsent
        if len(unsent) > 1 and len(unsent[0]) < _PACKET_BYTES:
            # They leave in one packet. Of a large chunk it is just the start, since this copies
            *pieces, last = unsent
            rest = memoryview(last)[_PACKET_BYTES:]
            unsent[:] = [b''.join((*pieces, last[:_PACKET_BYTES])), *((rest,) if rest else ())]

        # One look before the first byte, here alone: what has arrived by then on a connection of
        # the pool, while the caller's body ran too, can't be the response
        if not self.has_sent and connection.rested_at and not connection.is_quiet():
            connection.failure = ConnectionError('the server closed the idle connection')
        while unsent and connection.failure is None:
            data = unsent[0]
            sent = connection.send_now(data)
            if sent:
                self.has_sent = True
            if sent == len(data):
                del unsent[0]
            else:
                unsent[0] = memoryview(data)[sent:]
                if not sent or connection.credit <= 0:
                    break
        return not unsent

    def error(self, exception: Exception, part: str) -> Exception:
        """What an exception of the connection means, while the request is sent or after it."""
        if self._unsent and _is_timeout(exception):
            return self._kind(HttpConnectionError)(
                'the server took nothing of the request for %s seconds (socket_timeout)'
                % self._connection.timeout)
        if self.is_unsent_by(self._connection) and not _is_timeout(exception):
            return _NothingSentError()
        if not self.has_sent:
            return HttpConnectionError('the connection was closed before anything was sent: %s'
                                       % exception)
        if self.state is _STOPPED and self._connection.failure is None:
            return HttpConnectionClosedError('the connection was closed before the whole request '
                                             'was sent: %s' % exception)
        return _receive_error(exception, part, self._connection)

    def _body_error(self, exception: Exception) -> HttpError:
        if self.state is _STOPPED:
            return HttpDataError('the body of the request raised %r when it was closed'
                                 % exception)
        is_argument = self._chunks is None and isinstance(exception, TypeError)
        return self._kind(HttpInvalidRequest if is_argument else HttpConnectionError)(
            'the body of the request raised %r' % exception)

    def _refuse(self, reason: Exception) -> NoReturn:
        raise self._kind(HttpInvalidRequest)('the body of the request: %s' % reason) from reason

    def _kind(self, if_nothing_is_sent: Type[HttpError]) -> Type[HttpError]:
        return HttpDataError if self.has_sent else if_nothing_is_sent


def _unhooked(next_chunk: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
    """The first call: with the hooks of the loop, that would end a generator which was dropped in
    a task of its own.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return next_chunk()
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _framing_cost(data: bytes, decoded: bytes) -> int:
    """What is charged beside the bytes themselves: a chunk takes as long as 100 bytes or so."""
    return (len(data) - len(decoded)) * 16


def _async_iterator(chunks: Any) -> AsyncIterator[Any]:
    if not hasattr(chunks, '__aiter__'):
        raise TypeError('body must return an asynchronous iterable, as an async def with yield '
                        'does, not %s' % type(chunks).__name__)
    return chunks.__aiter__()  # type: ignore[no-any-return]


def _body_advice(body: Any) -> str:
    if body is None:
        return 'leave it out for none'
    if hasattr(body, '__aiter__'):
        return 'give the function that makes it, uncalled, and what it is called with as body_args'
    if isinstance(body, str):
        return 'streamed(text.encode()) makes one of text'
    if hasattr(body, 'read') or hasattr(body, '__next__'):
        return 'give an async def that yields what it reads, and what it is called with as ' \
            'body_args'
    return 'streamed(data) makes one of bytes'


def _constant(chunk: Any) -> Union[bytes, memoryview]:
    """A copy, so that the caller can't change it before it is sent; if large, it is sent at once.
    """
    if isinstance(chunk, bytes):
        return chunk
    try:
        view = memoryview(chunk)
    except TypeError:
        raise TypeError('it must yield bytes, bytearray or memoryview, not %s'
                        % type(chunk).__name__) from None
    return view.cast('B') if view.nbytes >= _PACKET_BYTES and view.c_contiguous else bytes(view)


def _body_arguments(args: Any, kwargs: Any) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
    if not args and not kwargs:
        return (), {}
    try:
        return tuple(args), dict(kwargs)
    except (TypeError, ValueError):
        raise TypeError('body_args must be an iterable, and body_kwargs a dict or pairs of names '
                        'and values') from None


def _is_timeout(exception: BaseException) -> bool:
    # From Python 3.11 on, ETIMEDOUT is of that class too
    return isinstance(exception, asyncio.TimeoutError) and not getattr(exception, 'errno', None)


def _receive_error(exception: Exception, part: str, connection: _Connection) -> HttpDataError:
    if _is_timeout(exception):
        return HttpDataError('nothing of the %s of the response arrived for %s seconds '
                             '(socket_timeout)' % (part, connection.timeout))
    # The reason is what Python 3.8 and 3.9 give with OpenSSL 3 in place of SSLEOFError
    if isinstance(exception, (ConnectionError, ssl.SSLEOFError)) or \
            getattr(exception, 'reason', '') == 'UNEXPECTED_EOF_WHILE_READING':
        return HttpConnectionClosedError('the connection was cut before the end of the %s of the '
                                         'response: %s' % (part, exception))
    return HttpDataError('the %s of the response could not be received: %s' % (part, exception))


# ---- Exchange (RFC 9110 10.1.1, RFC 9112 9.3) ---------------------------------------------------


async def _response_head(request: _Request, connection: _Connection, limit: int) -> _ReadHead:
    """Send a request, and return the final head that comes, maybe before all of it is sent.

    The connection is the caller's then; where anything is raised, it is closed.
    """
    head = _ReadHead(limit)
    request.attach(connection)
    try:
        request.progress()
        if request.state is _SENT:
            await connection.event()  # There can be nothing yet
        is_final = False
        while not is_final:
            data = connection.look() if request.has_sent and connection.failure is None else \
                await _look_without_sending(request, connection)
            if data is None:
                await (request.event() if request.state < _SENT else connection.event())
            else:
                is_final = head.feed(data)
            if head.has_continued:
                request.go_on()  # Also if the final head has come with the 100
            if not is_final and request.state < _SENT:
                request.progress()
        if request.state < _SENT and _is_refusal(head, request):
            await request.stop()
    except (OSError, asyncio.TimeoutError) as exception:
        connection.close()
        raise request.error(exception, 'head') from exception
    except BaseException:
        connection.close()
        raise
    return head


async def _look_without_sending(request: _Request, connection: _Connection) -> Optional[bytes]:
    """look() where nothing is sent yet, so that what a connection of the pool says is no response;
    or where that failed, when the server may have said why.
    """
    if connection.failure is not None:
        if request.is_unsent_by(connection):
            raise _NothingSentError
        await request.stop()
    data = connection.look()
    if data is not None and request.is_unsent_by(connection):
        raise _NothingSentError
    if not data and connection.failure is not None:
        raise connection.taken_failure()
    return data


def _is_refusal(head: _ReadHead, request: _Request) -> bool:
    """Whether a response that came early means that the rest of the request isn't wanted."""
    return head.code >= b'300' or head.code == b'101' or request.state is _HELD


# ---- Response body ------------------------------------------------------------------------------


class _ResponseBody:
    """The body of a response: an asynchronous iterator of bytes.

    While it has a connection, it owns it. It hands it back with the last byte, or closes it: on
    failure, at `aclose`, or when it is garbage collected. While the request isn't sent whole, it
    has that as well, and goes on with it wherever it waits. `_decoder` is None once all of the
    response is there, and `_is_last` says that the server will read no more after it.
    """

    __slots__ = (
        '__weakref__', '_chunk', '_connection', '_decoder', '_failure', '_finalizer', '_is_last',
        '_is_read', '_log', '_release', '_request')

    def __init__(  # noqa: PLR0913
            self, connection: _Connection, decoder: Iterator[_Decoded],
            release: Callable[[_Connection, bytes, Optional[_Log]], None], log: Optional[_Log],
            request: Optional[_Request] = None, is_last: bool = False,
    ) -> None:
        self._connection: Optional[_Connection] = connection  # None from the end of the body on
        self._failure: Optional[Callable[[], HttpDataError]] = None
        self._request = request
        self._is_read = False
        self._finalizer: Any = None
        try:
            self._chunk, unused = next(decoder)  # What came with the head
        except HttpDataError as exception:
            self._chunk = b''
            self._fail(exception)
            return
        if unused is not None and request is None:
            self._connection = None
            release(connection, unused, log)
            return

        self._decoder: Any = decoder if unused is None else None
        self._is_last = is_last or bool(unused)
        self._release = release
        self._log = log
        # And not __del__: in a reference cycle the socket's own finaliser may come first
        self._finalizer = weakref.finalize(self, connection.abandon)

    def __aiter__(self) -> _ResponseBody:
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes of the body as they arrive. Raises HttpDataError."""
        chunk = self._chunk
        if chunk:
            self._chunk = b''
            return chunk
        connection = self._connection
        if connection is None:
            raise StopAsyncIteration if self._failure is None else self._failure()

        self._check_free(connection)
        self._is_read = True
        try:
            chunk = await self._more(connection)
        except BaseException as exception:
            self._fail(exception)
            with contextlib.suppress(Exception):
                await self._stop_request()
            raise
        finally:
            self._is_read = False
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Close the connection, unless the whole body has arrived.

        What is unread is lost. What is unsent of the request is not sent.
        """
        if self._connection is not None:
            self._check_free(self._connection)
            self._detached().close()
            await self._stop_request()
        self._chunk = b''

    async def settle(self) -> None:
        """Where the whole response came early, go on until the request is sent, or not wanted."""
        if self._connection is None:
            with contextlib.suppress(Exception):
                await self._stop_request()  # The response was bad from its start
        elif self._decoder is None:
            chunk, self._chunk = self._chunk, b''
            with contextlib.suppress(StopAsyncIteration):
                await self.__anext__()
            self._chunk = chunk

    def _check_free(self, connection: _Connection) -> None:
        # To ask for the loop is a system call, in Python 3.11 and older
        if threading.get_ident() != connection.thread or (
                not connection.is_full and asyncio.get_running_loop() is not connection.loop):
            raise RuntimeError('the body of the response belongs to another event loop: read it '
                               'in that of its pool')
        if self._is_read:
            raise RuntimeError('the body of the response is being read already')

    async def _more(self, connection: _Connection) -> bytes:
        try:
            while True:
                if self._request is not None:
                    await self._go_on(self._request, connection)
                    if self._connection is None:
                        return b''
                is_turn = connection.credit <= 0
                if is_turn:
                    await (connection.turn() if self._request is None else self._request.event())
                data = connection.look()
                chunk = b'' if data is None else self._taken(data, connection)
                if chunk or self._connection is None:
                    return chunk
                if data is None and not is_turn:  # In which the caller's body may have got more
                    await (connection if self._request is None else self._request).event()
        except (OSError, asyncio.TimeoutError) as exception:
            raise (_receive_error(exception, 'body', connection) if self._request is None else
                   self._request.error(exception, 'body')) from exception

    def _taken(self, data: bytes, connection: _Connection) -> bytes:
        """Decode what has arrived; b'' is the end of the connection."""
        if self._decoder is None:
            self._is_last = True
            return b''
        chunk: bytes
        chunk, unused = self._decoder.send(data)
        if len(chunk) < len(data):
            connection.credit -= _framing_cost(data, chunk)
        if unused is not None and self._request is None:
            self._release(self._detached(), unused, self._log)
        elif unused is not None:
            self._decoder = None
            self._is_last |= bool(unused) or not data  # TLS may say so long before TCP
        return chunk

    async def _go_on(self, request: _Request, connection: _Connection) -> None:
        """Send more of the request, unless nobody reads it; let go of it at its end."""
        is_whole = self._decoder is None
        if is_whole and (self._is_last or not connection.is_quiet()):
            await request.stop()
        else:
            request.progress()
            if connection.failure is not None:
                await request.stop()
        if request.state < _SENT:
            return

        self._request = None
        if request.state is _STOPPED:
            connection.idle_seconds = 0
        if is_whole:
            self._release(self._detached(), b'', self._log)

    def _fail(self, exception: BaseException) -> None:
        """Close the connection, and have the same raised whenever the body is asked again."""
        if self._connection is not None:
            self._detached().close()
        if not isinstance(exception, HttpDataError):
            exception = HttpDataError('the body of the response was given up: %r' % exception)
        self._failure = functools.partial(type(exception), *exception.args)

    async def _stop_request(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            await request.stop()

    def _detached(self) -> _Connection:
        connection, self._connection = self._connection, None
        assert connection is not None
        if self._finalizer is not None:
            self._finalizer.detach()
        return connection


# ---- Pool ---------------------------------------------------------------------------------------

# On by default from Python 3.10 on: a TLS connection that is cut would look closed
_OP_IGNORE_UNEXPECTED_EOF = getattr(ssl, 'OP_IGNORE_UNEXPECTED_EOF', 0)

_Answer = Tuple[float, Sequence[str]]  # Of name resolution: when addresses expire, and they
_NO_ANSWER: _Answer = (0.0, ())


def Pool(  # noqa: C901, PLR0913, PLR0915
        get_dns_resolver: Callable[..., Tuple[_Resolve, _ClearCache]] = _get_dns_resolver,
        get_sock: Callable[..., socket.socket] = _get_sock,
        get_ssl_context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        http_version: bytes = b'HTTP/1.1',
        keep_alive_timeout: float = 15,
        recv_bufsize: int = 65536,
        max_header_length: int = 16384,
        socket_timeout: float = 10,
        get_logger_adapter: _GetLoggerAdapter = _get_logger_adapter,
        get_resolver_logger_adapter: _GetResolverLoggerAdapter = _get_resolver_logger_adapter,
) -> Tuple[Callable[..., Awaitable[Any]], Callable[..., Awaitable[None]]]:
    """Return (request, close), which share a pool of connections on the running loop.

    get_dns_resolver(get_logger_adapter=...): returns (resolve, clear_cache), as aiodnsresolver's
        Resolver does
    get_sock(): returns a TCP socket; called with socket.AF_INET6 for an IPv6 address
    get_ssl_context(): returns the ssl.SSLContext for https; called at the first https request
    http_version: b'HTTP/1.1' or b'HTTP/1.0'
    keep_alive_timeout: seconds that a connection may be idle; 0 for no reuse
    recv_bufsize: bytes to receive at once, at the most
    max_header_length: bytes of a response head, chunk line or trailer section, at the most
    socket_timeout: seconds that each wait on the network may take
    get_logger_adapter(extra): returns an adapter that logs
    get_resolver_logger_adapter(http_extra): returns such a function for the resolver

    Raises ValueError if http_version or a number makes no sense, TypeError if a hook is not a
    function, RuntimeError if no loop runs, and NotImplementedError if it can't watch sockets.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError('Pool() must be called where an event loop runs: in an async def, such '
                           'as the one that asyncio.run is given') from None
    if http_version not in (b'HTTP/1.1', b'HTTP/1.0'):
        raise ValueError("http_version must be b'HTTP/1.1' or b'HTTP/1.0', not %r" % http_version)
    for name, number, least in (
            ('keep_alive_timeout', keep_alive_timeout, 0), ('recv_bufsize', recv_bufsize, 1),
            ('max_header_length', max_header_length, 1), ('socket_timeout', socket_timeout, 0)):
        if not isinstance(number, (int, float)) or not number >= least:
            raise ValueError('%s must be a number of at least %d, not %r' % (name, least, number))
    if not isinstance(recv_bufsize, int) or recv_bufsize >= 2**31:  # As TLS takes it
        raise ValueError('recv_bufsize must be an int below 2**31, not %r' % recv_bufsize)
    for name, function, result in (
            ('get_dns_resolver', get_dns_resolver, 'a pair of functions'),
            ('get_sock', get_sock, 'a socket'),
            ('get_ssl_context', get_ssl_context, 'an ssl.SSLContext')):
        if not callable(function):
            raise TypeError('%s must be a function that returns %s, not %s'
                            % (name, result, type(function).__name__))
    if getattr(type(loop), 'add_reader', None) in (None, asyncio.AbstractEventLoop.add_reader):
        raise NotImplementedError('lowhaio needs a loop with add_reader, which %s is not; on '
                                  'Windows, asyncio.SelectorEventLoop is' % type(loop).__name__)

    # The most recently used of a key is last. A dict would leave holes there, to be passed over
    pool: Dict[_Key, collections.OrderedDict[_Connection, None]] = {}
    answers: Dict[str, _Answer] = {}  # By the key of an origin
    lasting_answers: Dict[str, Sequence[str]] = {}  # Of /etc/hosts, to be had without a call
    ssl_context: Optional[ssl.SSLContext] = None
    closed = False
    resolve, clear_cache = get_dns_resolver(get_logger_adapter=get_resolver_logger_adapter({}))

    async def request(  # noqa: PLR0913
            method: bytes, url: str, params: Iterable[Any] = (),
            headers: Iterable[Tuple[bytes, bytes]] = (),
            body: Callable[..., AsyncIterable[Any]] = empty_async_iterator,
            body_args: Iterable[Any] = (), body_kwargs: Any = (),
            get_logger_adapter: _GetLoggerAdapter = get_logger_adapter,
            get_resolver_logger_adapter: _GetResolverLoggerAdapter = get_resolver_logger_adapter,
    ) -> Tuple[bytes, _Fields, _ResponseBody]:
        """Send a request, and return (code, headers, body) once the head of the response is there.

        method: bytes, such as b'GET'
        url: str, http or https
        params: pairs to append to the query of the URL; a value may be a sequence
        headers: pairs of bytes; for a body, give content-length or transfer-encoding
        body(*body_args, **dict(body_kwargs)): returns an asynchronous iterable of bytes

        code is three digits as bytes. headers is a tuple of pairs of bytes, with names in lower
        case. body is an asynchronous iterator of bytes, with `aclose()`.

        Raises HttpConnectionError if nothing was sent: it is safe to try again. Raises
        HttpDataError otherwise (RFC 9110 9.2.2). Reading the body can raise HttpDataError too.
        """
        if closed:
            raise HttpConnectionError('the pool is closed: make another one with Pool()')
        try:
            origin, target = _url_parts(url)
            block, framing = _request_head(
                http_version, method, origin.host_field,
                _with_params(target, params) if params else target, headers)
            sending = _Request(block, framing, body, (body_args, body_kwargs))
        except (TypeError, ValueError) as exception:
            raise HttpInvalidRequest(str(exception)) from exception

        log = _debug(get_logger_adapter, method, url)
        try:
            while True:
                connection = reused(
                    origin, origin.addresses or lasting_answers.get(origin.key) or
                    known_addresses(origin)) or await connected(
                        origin, sending, log, get_resolver_logger_adapter(_extra(method, url)))
                if log:
                    log('Using connection: %s', connection.key)
                try:
                    head = await _response_head(sending, connection, max_header_length)
                    break
                except _NothingSentError:
                    pass  # Its server may have closed it at any time: the next one is tried
            response = responded(connection, sending, method, head, log)
            if sending.state < _SENT:
                await response[2].settle()
            return response
        except BaseException as exception:
            with contextlib.suppress(Exception):
                await sending.stop()
            # Here it costs nothing; in Python 3.11 and older to ask is a system call
            if isinstance(exception, Exception) and asyncio.get_running_loop() is not loop:
                raise RuntimeError('the pool belongs to another event loop: make one with Pool() '
                                   'in each') from exception
            raise

    def responded(
            connection: _Connection, sending: _Request, method: bytes, head: _ReadHead,
            log: Optional[_Log],
    ) -> Tuple[bytes, _Fields, _ResponseBody]:
        """Return a response, whose body the connection is handed to."""
        if log:
            log('Received head: %s', head.code)
        try:
            decoder, seconds = _response_framing(method, head, max_header_length)
        except BaseException:
            connection.close()
            raise
        stated = sending.persistence(http_version)
        allowed = seconds if seconds < stated else stated  # min takes three times as long
        connection.idle_seconds = allowed if allowed < keep_alive_timeout else keep_alive_timeout
        body = _ResponseBody(connection, decoder, release, log) if sending.state >= _SENT else \
            _ResponseBody(connection, decoder, release, log, sending, head.says_last())
        return head.code, head.headers, body

    def release(connection: _Connection, unused: bytes, log: Optional[_Log]) -> None:
        """Take a connection back after the last byte of a response."""
        is_kept = connection.idle_seconds and not closed and not unused
        if log:
            log('%s connection: %s', 'Keeping' if is_kept else 'Closing', connection.key)
        if not is_kept:
            connection.close()
            return
        connections = pool.get(connection.key)
        if connections is None:
            connections = pool[connection.key] = collections.OrderedDict()
        connections[connection] = None
        connection.rest(drop)

    def drop(connection: _Connection) -> None:
        remove(connection)
        connection.close()

    def remove(connection: _Connection) -> None:
        connections = pool[connection.key]
        del connections[connection]
        if not connections:
            del pool[connection.key]

    def reused(origin: _Origin, addresses: Sequence[str]) -> Optional[_Connection]:
        """Return the most recently used connection to the addresses that can still be used."""
        tls, host, port, *_ = origin
        while True:
            latest = None
            for address in addresses:
                connections = pool.get((host, address, port, tls))
                if connections is not None:
                    connection = next(reversed(connections))
                    if latest is None or connection.rested_at > latest.rested_at:
                        latest = connection
            if latest is None:
                return None

            remove(latest)
            if latest.wake_up():
                return latest
            latest.close()

    async def connected(
            origin: _Origin, sending: _Request, log: Optional[_Log],
            get_logger: _GetLoggerAdapter,
    ) -> _Connection:
        """Return a new connection. A body that began on one that was dead may wait meanwhile."""
        while True:
            try:
                return await found(origin, log, get_logger)
            except asyncio.CancelledError as exception:
                if not await sending.answers(exception):
                    raise

    async def found(
            origin: _Origin, log: Optional[_Log], get_logger: _GetLoggerAdapter,
    ) -> _Connection:
        """Return a new connection, or one that name resolution shows to be reusable."""
        failures: Dict[str, str] = {}
        expires_at, addresses = await current_answer(origin, get_logger)
        first = addresses[0]
        try:
            connection = reused(origin, addresses) or \
                await new_connection(origin, addresses, failures, log)
        except HttpTlsError:
            raise
        except HttpConnectionError:
            expires_at, addresses = await other_answer(origin, addresses, get_logger)
            if not addresses:
                raise
            connection = reused(origin, addresses) or \
                await new_connection(origin, addresses, failures, log)
        if connection.key[1] != first:  # So that the next request waits for nothing
            remember(origin, expires_at, sorted(addresses, key=connection.key[1].__ne__))
        return connection

    async def new_connection(origin: _Origin, addresses: Sequence[str], failures: Dict[str, str],
                             log: Optional[_Log]) -> _Connection:
        if log:
            log('Connecting: %s, %s', origin.host, addresses)
        kind: Type[HttpConnectionError] = HttpConnectionError
        owner: Any = None
        try:
            attempts = _Attempts(loop, get_sock, makes_room, addresses, origin.port, failures)
            owner, address = await attempts.winner(socket_timeout)
            if origin.tls:
                kind = HttpTlsError
                owner = _tls_sock(tls_context(), owner, origin.host)
            key = (origin.host, address, origin.port, origin.tls)
            owner = connection = _Connection(loop, owner, key, socket_timeout, recv_bufsize)
            if origin.tls:
                await connection.handshake()
            return connection
        except BaseException as exception:
            if owner is not None:
                owner.close()
            if not isinstance(exception, Exception):
                raise
            # Not the exception: it has this frame, in a traceback
            reason = \
                _failed_addresses(failures, origin.host) if owner is None and failures else \
                _no_answer(socket_timeout) if _is_timeout(exception) else str(exception)
            link = 'TLS with' if kind is HttpTlsError else 'connection to'
            raise kind('no %s %s, port %d: %s' % (link, origin.host, origin.port, reason)) \
                from exception

    def makes_room(error: Optional[int] = errno.EMFILE) -> bool:
        """Close what has been idle longest if no descriptor is free; False if that is no cure."""
        if error not in (errno.EMFILE, errno.ENFILE):  # Of the process, of the system
            return False
        try:
            for descriptor in os.pipe():
                os.close(descriptor)
        except OSError:
            idle = sorted(itertools.chain(*pool.values()), key=lambda other: other.rested_at)
            for connection in idle[:1 + len(idle) // 8]:  # Some, as to sort them takes its time
                drop(connection)
            return bool(idle)
        return True

    def known_addresses(origin: _Origin) -> Sequence[str]:
        expires_at, addresses = answers.get(origin.key, _NO_ANSWER)
        return addresses if loop.time() < expires_at else ()

    async def current_answer(origin: _Origin, get_logger: _GetLoggerAdapter) -> _Answer:
        """Return A records, or AAAA records where there is none; kept for as long as they live."""
        addresses = origin.addresses or lasting_answers.get(origin.key)
        if addresses:
            return _NEVER, addresses
        if known_addresses(origin):
            return answers[origin.key]

        try:
            answer = await resolved(origin.host, TYPES.A, get_logger)
        except HttpDnsError as exception:
            if not isinstance(exception.__cause__, DnsRecordDoesNotExist):
                raise
            answer = await resolved(origin.host, TYPES.AAAA, get_logger)
        remember(origin, *answer)
        return answer

    async def other_answer(
            origin: _Origin, addresses: Sequence[str], get_logger: _GetLoggerAdapter) -> _Answer:
        """Addresses of the other IP version, to try where none of these accepts a connection."""
        is_ipv6 = ':' in addresses[0]
        if not origin.addresses:
            with contextlib.suppress(HttpDnsError):
                expires_at, others = await resolved(
                    origin.host, TYPES.A if is_ipv6 else TYPES.AAAA, get_logger)
                # A resolver that looks at no type gives those again that were tried
                return expires_at, [other for other in others if (':' in other) != is_ipv6]
        return _NO_ANSWER

    def remember(origin: _Origin, expires_at: float, addresses: Sequence[str]) -> None:
        if expires_at == _NEVER:
            _remember(lasting_answers, origin.key, addresses)
        else:
            _remember(answers, origin.key, (expires_at, addresses))

    async def resolved(host: str, record_type: int, get_logger: _GetLoggerAdapter) -> _Answer:
        ask = functools.partial(resolve, host, record_type, get_logger_adapter=get_logger)
        try:
            try:
                records = list(await ask())
            except OSError as exception:
                if not makes_room(exception.errno):
                    raise
                records = list(await ask())
        except Exception as exception:
            has_words = isinstance(exception, (DnsError, OSError)) and exception.args
            raise HttpDnsError('%s could not be resolved: %s' % (
                host, exception if has_words else repr(exception))) from exception
        if closed:
            await clear_cache(get_logger_adapter=get_logger)  # And its timer
        if not records:
            raise HttpDnsError('%s has no address' % host)
        expires_at = min(getattr(record, 'expires_at', 0) for record in records)
        return expires_at, list(dict.fromkeys(map(str, records)))

    def tls_context() -> ssl.SSLContext:
        nonlocal ssl_context
        makes_room()  # OpenSSL takes a file that it can't open for one that isn't there
        if ssl_context is None:
            ssl_context = get_ssl_context()
            ssl_context.options &= ~_OP_IGNORE_UNEXPECTED_EOF
        return ssl_context

    async def close(
            get_logger_adapter: _GetLoggerAdapter = get_logger_adapter,
            get_resolver_logger_adapter: _GetResolverLoggerAdapter = get_resolver_logger_adapter,
    ) -> None:
        """Close the idle connections now, and each other connection after its response.

        A new request raises HttpConnectionError from now on.
        """
        nonlocal closed
        closed = True
        log = _debug(get_logger_adapter)
        if log:
            log('Closing pool')
        for connection in list(itertools.chain(*pool.values())):
            drop(connection)
        answers.clear()
        lasting_answers.clear()
        await clear_cache(get_logger_adapter=get_resolver_logger_adapter({}))

    return request, close
