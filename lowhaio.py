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
    exchange     a request sent and the head of its response received, without a pool
    pool         Response body, Pool

Three rules hold throughout. No task is ever created: everything runs in the caller's own. A
connection has one owner at a time (request, the response body, the pool), which closes it or hands
it on. What comes off the wire is hostile until all its bytes were checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import itertools
import logging
import operator
import os
import re
import select
import socket
import ssl
import threading
import types
import urllib.parse
import weakref
from typing import (
    Any, AsyncIterable, AsyncIterator, Awaitable, Callable, Dict, Generator, Iterable, Iterator,
    List, Literal, MutableMapping, NamedTuple, Optional, Sequence, Tuple, Type, Union,
)

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
    """What a request raises, and what reading the body of its response raises.

    If another exception is the reason, it is the `__cause__`: `asyncio.TimeoutError` if
    `socket_timeout` has passed.
    """


class HttpConnectionError(HttpError):
    """Nothing of this request was sent. It is safe to try again."""


class HttpDnsError(HttpConnectionError):
    """The name of the host could not be resolved to an address."""


class HttpTlsError(HttpConnectionError):
    """The TLS handshake failed, or the certificate of the server is not valid for the host."""


class HttpInvalidRequest(HttpConnectionError):
    """The request can't be sent: an argument is wrong."""


class HttpDataError(HttpError):
    """Some of this request was sent, or may have been. The server may have acted on it."""


class HttpConnectionClosedError(HttpDataError):
    """The connection ended before the response did."""


class HttpHeaderTooLong(HttpDataError):
    """The head of a response, a chunk line or the trailers are longer than `max_header_length`."""


class HttpInvalidResponse(HttpDataError):
    """The server broke the syntax or the framing of HTTP/1.1 (RFC 9112)."""


# ---- Logging ------------------------------------------------------------------------------------


class HttpLoggerAdapter(logging.LoggerAdapter):  # type: ignore[type-arg]
    """Puts `[http]` before each message, or `[http:METHOD,URL]` within a request."""

    def process(
            self, msg: Any, kwargs: MutableMapping[str, Any],
    ) -> Tuple[Any, MutableMapping[str, Any]]:
        extra = ','.join(str(value) for value in (self.extra or {}).values())
        # The prefix becomes part of the format, if it is one, where a % of the URL would be a
        # conversion
        extra = extra.replace('%', '%%') if '%' in str(msg) else extra
        return '[http%s] %s' % (':' + extra if extra else '', msg), kwargs


_LoggerAdapter = Union[logging.Logger, 'logging.LoggerAdapter[Any]']
_GetLoggerAdapter = Callable[[Dict[str, Any]], _LoggerAdapter]
_GetResolverLoggerAdapter = Callable[[Dict[str, Any]], _GetLoggerAdapter]
_Log = Callable[..., None]

_LOGGER = logging.getLogger('lowhaio')
_RESOLVER_LOGGER = logging.getLogger('aiodnsresolver')


def _get_logger_adapter(extra: Dict[str, Any]) -> _LoggerAdapter:
    return HttpLoggerAdapter(_LOGGER, extra)


def _get_resolver_logger_adapter(http_extra: Dict[str, Any]) -> _GetLoggerAdapter:
    http_adapter = HttpLoggerAdapter(_RESOLVER_LOGGER, http_extra)
    return lambda extra: ResolverLoggerAdapter(http_adapter, extra)


def _debug(
        get_logger_adapter: _GetLoggerAdapter, method: bytes = b'', url: str = '',
) -> Optional[_Log]:
    """What logs at debug level, or None. It asks once a request: a call that is off costs 0.7 us.
    """
    if get_logger_adapter is _get_logger_adapter and not _LOGGER.isEnabledFor(logging.DEBUG):
        return None  # Without the adapter, which costs 1 us
    logger = get_logger_adapter(_extra(method, url))
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
    """Return a function that sends `data`, when it is the `body` of a request."""
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


@contextlib.contextmanager
def timeout(loop: asyncio.AbstractEventLoop, seconds: float) -> Iterator[Callable[[], None]]:
    """Raise `asyncio.TimeoutError` in the current task once `seconds` have passed in the block.

    Yields a function without arguments that starts the time again. A cancellation from outside
    passes through as `asyncio.CancelledError`, and `Task.cancelling()` is left as it was found.
    Raises RuntimeError outside of a task.
    """
    task: Any = asyncio.current_task(loop)
    if task is None:
        raise RuntimeError('timeout must be used in a task: it is what it cancels')
    counts_cancellations = hasattr(task, 'uncancel')  # Python 3.11
    cancelling = task.cancelling() if counts_cancellations else 0
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
        return is_expired and (not counts_cancellations or task.uncancel() <= cancelling)

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
_Head = Tuple[bytes, bool, _Fields]  # Of a response: code, whether since HTTP/1.1, headers


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

# RFC 9110 8.6; 19 digits are ten exabytes
_CONTENT_LENGTH = re.compile(rb'[0-9]{1,19}')

# RFC 3986 appendix B, with scheme and authority required
_URL = re.compile(r'([^:/?#]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?')
_NOT_IN_URL = re.compile(r'[\x00-\x1f\x7f\ud800-\udfff]')
_ZONE = re.compile(r'\[[0-9A-Fa-f:.]*%')
_AUTHORITY = re.compile(r'(\[[0-9A-Fa-f:.]*\]|[^:\[\]]+)(?::([0-9]{0,5}))?')

# RFC 1035 2.3.1, and underscores, which names in private networks have
_NAME = re.compile(r'[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*')

# URL standard, "ends in a number": some system's resolver takes it for an IPv4 address
_NUMERIC_LAST_LABEL = re.compile(r'(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)')

# What IDNA 2003, which Python has, makes another name of than browsers do (UTS 46), whose owner
# may be another: the five that are valid since IDNA 2008, a soft hyphen, those that have a dot in
# them, and those that Unicode has decomposed in another way since (its Corrigendum 4)
_AMBIGUOUS_IN_IDNA = re.compile(
    '[\xdf\u1e9e\u03c2\u200c\u200d\u1806\u2024\u2488-\u249b\u33c2\u33c7\u33d8\ufe52'
    '\U0002f868\U0002f874\U0002f91f\U0002f95f\U0002f9bf]')

# RFC 3986 3.3 and 3.4: the bytes that are not allowed, and % where it starts no escape. + is
# allowed in a path, but some servers take it for a space
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
        raise ValueError('the URL has user information before its host (RFC 9110 4.2.4): send an '
                         'authorization header instead')

    # What was taken for it may be a password, as in http://user:a/b@example.com
    match = _AUTHORITY.fullmatch(authority)
    if not match and _ZONE.match(authority):
        raise ValueError('the IPv6 address of the URL has a zone, which is of this machine alone: '
                         'give a name that a resolver of your own has the address and zone of')
    if not match:
        raise ValueError('the URL must have a host, an IPv6 address in brackets, and after it '
                         'nothing or a colon and a port of 1 to 65535')
    tls = scheme == 'https'
    port = int(match[2] or (443 if tls else 80))
    if not 1 <= port <= 65535:
        raise ValueError('the port of the URL must be 1 to 65535, not %d' % port)

    if match[1].startswith('['):
        address = _address(ipaddress.IPv6Address, match[1][1:-1])
        return _Origin(tls, address, port, (address,), match[1].lower().encode(), '')

    host_field = _encoded_name(match[1])
    host = host_field[:-1] if host_field.endswith('.') else host_field
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


def _encoded_name(host: str) -> str:
    """Return a domain name in lower case and IDNA-encoded, with its trailing dot if it has one."""
    # The first look is before encoding, which takes the square of the length
    if len(host) > 254:
        raise ValueError('the host of the URL is longer than 253 bytes')
    ambiguous = None if host.isascii() else _AMBIGUOUS_IN_IDNA.search(host)
    if ambiguous:
        raise UnicodeError('the host of the URL has %a, of which IDNA 2003 and 2008 make other '
                           'names: give the one that is meant in its xn-- form, not %s'
                           % (ambiguous[0], _shown(host)))
    try:
        name = (host if host.isascii() else host.encode('idna').decode('ascii')).lower()
    except UnicodeError as exception:
        raise UnicodeError('the host of the URL is not a name in IDNA: %s' % _shown(host)) \
            from exception
    bare_name = name[:-1] if name.endswith('.') else name
    if len(bare_name) > 253:
        raise ValueError('the host of the URL is longer than 253 bytes')
    if not _NAME.fullmatch(bare_name):
        raise ValueError('the host of the URL must have labels of 1 to 63 letters, digits, - or '
                         '_, separated by dots, not %s' % _shown(host))
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
        headers: Iterable[Tuple[bytes, bytes]],
) -> Tuple[bytes, Dict[bytes, bytes]]:
    """Return the head of a request, and those of its fields that frame it.

    Raises ValueError or TypeError.
    """
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
_REQUEST_FRAMING = frozenset(
    (b'host', b'content-length', b'transfer-encoding', b'connection', b'expect'))


# Tokens in lower case, each checked once, as the names of fields are few: a regular expression for
# each takes three times as long, and functools.lru_cache or __missing__ twice
_lower_tokens: Dict[bytes, bytes] = {}


def _lower_token(token: bytes) -> bytes:
    """Return a method or the name of a field in lower case. Raises ValueError."""
    lower_token = _lower_tokens.get(token)
    if lower_token is None:
        if not _TOKEN.fullmatch(token):
            raise ValueError("a method or header name must be a token, of letters, digits and "
                             "!#$%%&'*+-.^_`|~ (RFC 9110 5.6.2), not %s" % _shown(token))
        lower_token = token.lower()
        _remember(_lower_tokens, token, lower_token)
    return lower_token


_MAX_REMEMBERED = 128  # Bytes: what servers choose must not fill the memory


def _remember(cache: Dict[Any, Any], key: Any, value: Any) -> None:
    if len(key) <= _MAX_REMEMBERED:
        if len(cache) >= 512:
            cache.clear()
        cache[key] = value


def _check_framing(version: bytes, framing: Dict[bytes, bytes]) -> None:
    """Refuse what a server could read as another message (RFC 9112 6, 11.2)."""
    if not _HOST.fullmatch(framing.get(b'host', b'')):
        raise ValueError('the header host must be given once, as host or host:port')
    if not _CONTENT_LENGTH.fullmatch(framing.get(b'content-length', b'0')):
        raise ValueError('the header content-length must be given once, as a number')

    if b'transfer-encoding' in framing:
        if b'content-length' in framing:
            raise ValueError('the header transfer-encoding must not be given with content-length '
                             '(RFC 9112 6.1)')
        if version == b'HTTP/1.0':
            raise ValueError('HTTP/1.0 has no transfer-encoding (RFC 9112 6.1)')
        codings = _tokens(framing[b'transfer-encoding'])
        if codings[-1] != b'chunked' or codings.count(b'chunked') > 1 or \
                b'identity' in codings or not all(map(_TOKEN.fullmatch, codings)):
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
    return '%a' % (data,) if len(data) <= 80 else '%a...' % (data[:80],)


# ---- Response head (RFC 9112 4, 5) --------------------------------------------------------------


# RFC 9112 4: status-line = HTTP-version SP status-code SP [ reason-phrase ], where some servers
# leave out the second SP
_STATUS_LINE = re.compile(rb'HTTP/1\.([0-9]) ([0-9]{3})(?: [^\0\r\n]*)?')

# RFC 9112 5.2: obs-fold = OWS CRLF RWS
_OBS_FOLD = re.compile(rb'\r\n[ \t]+')

_NUL, _CR, _LF = b'\0\r\n'
_BARE_LF = re.compile(rb'(?<!\r)\n')

# What a line may start with, to tell which byte is wrong. RFC 9112 5: field-line = field-name ":"
# OWS field-value OWS, where the value has no NUL, CR or LF
_START_OF_STATUS_LINE = re.compile(functools.reduce(
    lambda rest, part: b'(?:%b%b)?' % (part, rest),
    (rb' [^\0\r\n]*', *[b'[0-9]'] * 3, b' ', b'[0-9]', rb'\.', b'1', b'/', b'P', b'T', b'T', b'H'),
    b''))
_START_OF_FIELD_LINE = re.compile(rb'(?:' + _TCHAR + rb'+(:[^\0\r\n]*)?)?')
_START_OF_FOLD = re.compile(rb'([ \t][^\0\r\n]*)')


def _end_of_head(received: bytes, searched: int, limit: int) -> int:
    """Return where the line end and the empty line after a head are; -1 if it isn't whole."""
    end = received.find(b'\r\n\r\n', searched - 3 if searched > 3 else 0)
    if 0 <= end <= limit - 4:
        return end
    if end >= 0 or len(received) > limit:
        raise HttpHeaderTooLong('the head of the response is longer than %d bytes '
                                '(max_header_length)' % limit)
    if not b'HTTP/1.'.startswith(received[:7]) or _BARE_LF.search(received, searched):
        _response_head(received)  # Raises: this can never become a head
    return end


def _response_head(head: bytes) -> _Head:
    """Return the code of a response, whether it is of HTTP/1.1 or newer, and its headers."""
    status_line, _, field_lines = head.partition(b'\r\n')
    code, since_1_1 = _known_statuses.get(status_line) or _status(status_line)
    return code, since_1_1, _fields(field_lines) if field_lines else ()


_known_statuses: Dict[bytes, Tuple[bytes, bool]] = {}  # Most are the same few


def _status(line: bytes) -> Tuple[bytes, bool]:
    status = _STATUS_LINE.fullmatch(line)
    if not status:
        raise _line_error(1, 'HTTP/1.x, a code of three digits and a reason', line,
                          _START_OF_STATUS_LINE)
    code = status[2], status[1] != b'0'
    _remember(_known_statuses, line, code)
    return code


# Field lines that servers send again and again, half of a head or more, and that tell nothing of a
# user, with their names and values: to look them up takes a quarter of what it takes to parse them
_known_fields: Dict[bytes, Tuple[bytes, bytes]] = {}
_REPEATED = frozenset((
    b'accept-ranges', b'access-control-allow-origin', b'alt-svc', b'cache-control', b'connection',
    b'content-encoding', b'content-length', b'content-type', b'date', b'keep-alive', b'pragma',
    b'server', b'strict-transport-security', b'transfer-encoding', b'vary', b'via',
    b'x-content-type-options', b'x-frame-options', b'x-powered-by', b'x-xss-protection'))


def _fields(lines: bytes) -> _Fields:
    try:
        return _unfolded_fields(lines)
    except ValueError:
        pass
    try:
        return _unfolded_fields(_OBS_FOLD.sub(b' ', lines))
    except ValueError:
        raise _field_error(lines) from None


def _unfolded_fields(lines: bytes) -> _Fields:
    known = _known_fields.get
    separate_lines = lines.split(b'\r\n')
    without_ends = b''.join(separate_lines)
    # As numbers: to look for bytes takes ten times as long
    if _NUL in without_ends or _CR in without_ends or _LF in without_ends:
        raise ValueError
    return tuple([known(line) or _field(line) for line in separate_lines])


def _field(line: bytes) -> Tuple[bytes, bytes]:
    name, colon, value = line.partition(b':')
    if not colon:
        raise ValueError
    field = _lower_token(name), value.strip(b' \t')
    if field[0] in _REPEATED:
        _remember(_known_fields, line, field)
    return field


def _field_error(lines: bytes) -> HttpInvalidResponse:
    for number, line in enumerate(lines.split(b'\r\n'), 2):
        is_fold = number > 2 and line.startswith((b' ', b'\t'))
        start = _START_OF_FOLD if is_fold else _START_OF_FIELD_LINE
        good = start.fullmatch(line)
        if not good or not good[1]:
            break
    return _line_error(number, 'a name, a colon and a value', line, start)


def _line_error(
        number: int, expected: str, line: bytes, start: re.Pattern[bytes],
) -> HttpInvalidResponse:
    good = start.match(line)
    return HttpInvalidResponse('line %d of the head must be %s, which byte %d is not: %s' % (
        number, expected, good.end() + 1 if good else 1, _shown(line)))


# ---- Body decoders (RFC 9112 6, 7.1) ------------------------------------------------------------
#
# Generators. They start with what came after a head, and are sent what is received: b'' at the end
# of the connection. They yield what that decodes to, and what came after the last byte of the
# body: None until that has arrived; or False if there is much to decode yet, for which they are to
# be sent None once other tasks have had their turn. Of a body that is whole from the start, any
# iterator will do.


_Decoded = Tuple[bytes, Union[bytes, Literal[False], None]]
_Decoder = Generator[_Decoded, Any, None]

# Of chunks, which take about 1 us each, before other tasks get their turn
_TURN_CHUNKS = 2048


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
    data = yield data, None
    while data:
        data = yield data, None
    yield b'', b''


class _Syntax(NamedTuple):
    whole: re.Pattern[bytes]
    start: re.Pattern[bytes]  # Of a part of it: the groups are all that is needed to go on from
    name: str
    limited: str


# RFC 9112 7.1.1: chunk-size [ chunk-ext ] CRLF; 16 digits are 64 bits. RFC 9110 5.6.3 allows to
# drop whitespace before the extension
_CHUNK_LINE = _Syntax(
    re.compile(rb'([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\0\r\n]*)?\r\n'),
    re.compile(rb'(?:([0-9A-Fa-f]{1,16})(?:([ \t])[ \t]*)?(?:(;)[^\0\r\n]*)?(\r)?)?'),
    'a chunk size of 1 to 16 hex digits, then CRLF', 'chunk lines with extensions')
_END_OF_CHUNK = _Syntax(re.compile(rb'\r\n'), re.compile(rb'(\r)?'), 'CRLF after a chunk', '')

# RFC 9112 7.1.2: a trailer field, or the empty line after them; from the second line on, it may
# be a line that the one before is folded to (RFC 9112 5.2)
_TRAILER = _Syntax(
    re.compile(rb'(?:%b+:[^\0\r\n]*)?\r\n' % _TCHAR),
    re.compile(rb'(?:(%b)%b*(?:(:)[^\0\r\n]*(\r)?)?|(\r))?' % (_TCHAR, _TCHAR)),
    'a trailer field or CRLF', 'trailers')
_NEXT_TRAILER = _Syntax(
    re.compile(rb'(?:(?:%b+:|[ \t])[^\0\r\n]*)?\r\n' % _TCHAR),
    re.compile(rb'(?:(%b)%b*(?:(:)[^\0\r\n]*(\r)?)?|([ \t])[^\0\r\n]*(\r)?|(\r))?'
               % (_TCHAR, _TCHAR)),
    'a trailer field or CRLF', 'trailers')


class _Chunked:
    """A body in the chunked transfer coding (RFC 9112 7.1); its trailers are checked and dropped.

    Chunks are found by offset, and joined: many tiny ones cost no more than their bytes. Of a line
    that isn't whole no more is kept than is needed, and no byte is looked at twice.
    """

    __slots__ = ('_before', '_chunks', '_data', '_limit', '_limited_bytes', '_position')

    def __init__(self, limit: float, data: bytes) -> None:
        self._data = data
        self._position = 0  # How much of data is done with
        self._before = 0  # Bytes of the body before data
        self._chunks: List[Union[bytes, memoryview]] = []
        self._limit = limit
        self._limited_bytes = 0

    def decoded(self) -> _Decoder:
        size = -1
        chunks = 0
        while size:
            if chunks == _TURN_CHUNKS:
                chunks = 0
                yield self._joined(), False
            chunks += 1
            if self._position == len(self._data):
                yield from self._more(b'')
            line = _CHUNK_LINE.whole.match(self._data, self._position) or \
                (yield from self._whole(_CHUNK_LINE))
            size, self._position = int(line[1], 16), line.end()
            if line.end() > line.end(1) + 2:
                self._count(len(line[0]), _CHUNK_LINE)
            elif size:
                chunks += self._repeated(b'\r\n' + line[0], size, _TURN_CHUNKS - chunks)

            end = self._position + size
            if self._data[end:end + 2] == b'\r\n':  # Without trailers, after the last one too
                self._chunks.append(self._data[self._position:end])
                self._position = end + 2
            else:
                yield from self._rest_of_chunk(size) if size else self._trailers()
        yield self._joined(), self._data[self._position:]

    def _repeated(self, between: bytes, size: int, limit: int) -> int:
        """Take the chunks before one of the same size, as most are, and return how many: chunks of
        8 KiB take two thirds of what they take if each line is matched.
        """
        data, start, end = self._data, self._position, self._position + size
        source = memoryview(data) if size > 1024 else data  # To be joined with one copy less
        number = 0
        while number < limit and data.startswith(between, end):
            self._chunks.append(source[start:end])
            start = end + len(between)
            end = start + size
            number += 1
        self._position = start
        return number

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
        syntax = _TRAILER
        line = b''
        while line != b'\r\n':
            line = (yield from self._whole(syntax))[0]
            self._count(len(line), syntax)
            syntax = _NEXT_TRAILER

    def _whole(
            self, syntax: _Syntax,
    ) -> Generator[_Decoded, bytes, re.Match[bytes]]:
        """Return the match of a line, once it is whole."""
        match = syntax.whole.match(self._data, self._position)
        while not match:
            start: Any = syntax.start.match(self._data, self._position)
            index = start.end()
            if index < len(self._data):
                raise HttpInvalidResponse('byte %d of the chunked body is %a, where %s must be' % (
                    self._before + index + 1, self._data[index:index + 1], syntax.name))
            rest = b''.join(filter(None, start.groups()))
            self._count(len(self._data) - self._position - len(rest), syntax)
            yield from self._more(rest)
            match = syntax.whole.match(self._data)
        self._position = match.end()
        return match

    def _more(self, rest: bytes) -> Generator[Tuple[bytes, None], bytes, None]:
        """Hand over what is decoded, and go on with what is received then, after the rest."""
        received = yield self._joined(), None
        if not received:
            raise HttpConnectionClosedError('the body ended before its last chunk')
        self._before += len(self._data) - len(rest)
        self._data, self._position = rest + received, 0

    def _joined(self) -> bytes:
        decoded = b''.join(self._chunks)
        self._chunks.clear()
        return decoded

    def _count(self, number: int, syntax: _Syntax) -> None:
        self._limited_bytes += number
        if self._limited_bytes > self._limit:
            raise HttpHeaderTooLong('the %s of the body are longer than %d bytes '
                                    '(max_header_length)' % (syntax.limited, self._limit))


# ---- Framing and persistence (RFC 9112 6.3, 9.3) ------------------------------------------------


# RFC 2068 19.7.1.1: Keep-Alive: timeout=N, one of its parameters
_KEEP_ALIVE_TIMEOUT = re.compile(rb'(?:^|[,; \t])timeout=([0-9]{1,9})', re.IGNORECASE)


_CHUNKS_ADVICE = '; lowhaio sends chunks as they are given, and lowhaio_chunked encodes them'


def _request_decoder(framing: Dict[bytes, bytes]) -> Optional[_Decoder]:
    """What holds the body of a request to its framing, as its server would; None for no body."""
    length = int(framing.get(b'content-length', 0))
    if b'transfer-encoding' not in framing and not length:
        return None
    decoder = _rest_of_known_length(length, b'') if length else \
        _Chunked(float('inf'), b'').decoded()
    next(decoder)
    return decoder


@functools.lru_cache(maxsize=256)
def _stated_persistence(since_1_1: bool, connection: bytes, keep_alive: bytes = b'') -> float:
    """How many seconds a message lets its connection live on (RFC 9112 9.3); 0 if not at all."""
    options = _tokens(connection)
    if b'close' in options or (not since_1_1 and b'keep-alive' not in options):
        return 0
    # A second's margin, so that a request doesn't cross with the server's close
    stated = _KEEP_ALIVE_TIMEOUT.search(keep_alive)
    return max(0, int(stated[1]) - 1) if stated else float('inf')


def _response_framing(
        method: bytes, head: _Head, received: bytes, limit: int,
) -> Tuple[Iterator[_Decoded], float]:
    """Return what decodes the body, in the order of RFC 9112 6.3, and how many seconds the
    response lets the connection live on: 0 if it can't be used again.
    """
    code, since_1_1, headers = head
    fields = dict(headers)
    if len(fields) < len(headers):
        fields = {}
        for name, value in headers:
            _add_field(fields, name, value)

    coding, length = fields.get(b'transfer-encoding'), fields.get(b'content-length')
    # RFC 9112 6.1: with both, or in HTTP/1.0, an intermediary may have seen another end
    is_ambiguous = coding is not None and (length is not None or not since_1_1)
    connection, keep_alive = fields.get(b'connection', b''), fields.get(b'keep-alive', b'')
    stated_persistence: Callable[..., float] = _stated_persistence
    if len(connection) + len(keep_alive) > _MAX_REMEMBERED:
        stated_persistence = _stated_persistence.__wrapped__
    seconds = 0 if is_ambiguous or code == b'101' else \
        stated_persistence(since_1_1, connection, keep_alive)

    if method == b'HEAD' or code in (b'101', b'204', b'304'):
        return _known_length(0, received), seconds
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

# How long name servers are given, round by round: slow links take a second and more
_DNS_ROUNDS = (0.5, 1, 2, 3, 3)

# For an answer that was cut and has no address: none of the codes of RFC 1035 4.1.1
_TRUNCATED = -1

_DNS_WORDS: Dict[Any, str] = {  # By error code, or class of exception
    2: 'error code 2 (SERVFAIL)', 5: 'error code 5 (REFUSED)',
    _TRUNCATED: 'an answer that was cut (TC) and has no address, and TCP is not used',
    DnsTimeout: 'no valid answer', DnsCnameChainTooLong: 'a chain of more than 20 CNAME records'}

_Hosts = Dict[bytes, Dict[int, List[bytes]]]  # By name in lower case and type of record: addresses


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
    name_servers = [name_server for name_server in map(_name_server, words) if name_server]
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
    try:
        address = socket.inet_ntoa(socket.inet_aton(word.decode()))
    except (OSError, ValueError):
        return ''
    return '127.0.0.1' if address == '0.0.0.0' else address  # From where its answers come


async def _get_host(hosts: _Hosts, name: Any, record_type: int) -> Any:
    addresses = hosts.get(name)
    if addresses is None:
        return None
    if record_type not in addresses:
        raise DnsRecordDoesNotExist  # What is there has no other addresses, of whichever type
    kind = IPv4AddressExpiresAt if record_type == TYPES.A else IPv6AddressExpiresAt
    # Never, but for that of an alias that a name server has given
    return tuple(kind(address, name.expires_at) for address in addresses[record_type])


class _NameServers:
    """The name servers to ask, round by round.

    A class, since aiodnsresolver leaves it half used: the loop would finalise an asynchronous
    generator in a task of its own. And aiodnsresolver ends its wait for a name server by
    cancelling the task: that is taken back here, where it asks for the next one.
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
        if hasattr(self._task, 'uncancel'):  # Python 3.11
            # The clock and timers of uvloop have whole milliseconds
            if self._loop.time() + 0.002 > self._deadline and \
                    self._task.cancelling() > self._cancelling:
                self._task.uncancel()
                if self._task.cancelling() > self._cancelling:
                    raise asyncio.CancelledError  # From outside, in the same turn of the loop
            self._cancelling = self._task.cancelling()

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
            # Resolver reads both files by itself, takes nothing in their place, and raises where
            # libc goes on. So this is its code, with other functions among its globals: to put
            # them into its module would change it for all, and a copy of it would get old
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
    failure = 'the name servers (%s%s) ' % (', '.join(name_servers), remark)
    if isinstance(exception, DnsRecordDoesNotExist):
        failure += 'know no A or AAAA record of it'
    else:
        key = exception.args[0] if isinstance(exception, DnsResponseCode) else type(exception)
        failure += 'were asked %d times each, for up to %s seconds; in the end: %s' % (
            len(_DNS_ROUNDS), sum(_DNS_ROUNDS),
            _DNS_WORDS.get(key) or exception.__cause__ or repr(exception))
    return failure if '.' in host else \
        failure + '; a single label needs a search domain, which is not added'


def _drop_tracebacks(exception: Optional[BaseException]) -> None:
    while exception is not None:
        exception.__traceback__ = None
        _drop_tracebacks(exception.__cause__)
        exception = exception.__context__


# ---- Connection ---------------------------------------------------------------------------------


_Key = Tuple[str, str, int, bool]  # Host, IP address, port, TLS

# How many bytes may pass before other tasks get their turn, which is less than a megabyte with
# one call to send more; and what a call counts for at least
_TURN_BYTES = 720896
_CALL_BYTES = 4096

# Of one call to send, which with TLS and a fast peer doesn't end by itself. The first one of a
# request is one TLS record (RFC 8446 5.1), as a call for several may send some and then raise
_SEND_BYTES = 262144
_TLS_RECORD_BYTES = 16384

# RFC 8305 5: Connection Attempt Delay
_ATTEMPT_SECONDS = 0.25

# Addresses that a message names
_MAX_FAILURES = 6

# What connect_ex returns for an attempt that goes on; the second on Windows
_IN_PROGRESS = (errno.EINPROGRESS, getattr(errno, 'WSAEWOULDBLOCK', errno.EINPROGRESS))


class _Connection:
    """A connected socket, with TLS or without, whose operations can be awaited one at a time.

    Its reader stays registered, since adding and removing it costs 28 us: it is removed only when
    something arrives that nobody waits for. One timer serves all waits, which move its deadline.
    """

    __slots__ = (
        '_background', '_bufsize', '_deadline', '_fileno', '_first_send_bytes', '_is_drained',
        '_is_paused', '_is_reset', '_is_sending', '_is_tls', '_loop', '_on_idle_event',
        '_operation', '_poll', '_reads', '_recv', '_send', '_send_bytes', '_sock', '_thread',
        '_timer', '_timer_at', '_waiter', '_writes', 'arrived', 'credit', 'idle_seconds', 'key',
        'rested_at', 'timeout')

    def __init__(
            self, loop: asyncio.AbstractEventLoop, sock: socket.socket, key: _Key,
            timeout: float, bufsize: int,
    ) -> None:
        self.key = key
        self.timeout = timeout
        self.arrived = False  # Whether something may have that nobody waited for
        self.credit = _TURN_BYTES  # How much may pass yet in this turn of the loop
        self.idle_seconds = 0.0  # How long it may rest after its response; 0 if not at all
        self.rested_at = 0.0  # When it was put into the pool, if it was
        self._loop = loop
        self._sock = sock
        self._fileno = sock.fileno()
        self._bufsize = bufsize
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        # read and write are what recv and send of an SSLSocket call, after checks
        self._recv: Callable[[int], bytes] = getattr(sock, 'read' if self._is_tls else 'recv')
        self._send: Callable[[Any], int] = getattr(sock, 'write' if self._is_tls else 'send')
        self._first_send_bytes = _TLS_RECORD_BYTES if self._is_tls else _SEND_BYTES
        self._send_bytes = self._first_send_bytes
        self._thread = threading.get_ident()
        self._waiter: Optional[asyncio.Future[Any]] = None
        self._operation: Optional[Callable[[], Any]] = None
        self._background: Optional[Callable[[], Optional[bool]]] = None
        self._is_drained = False
        self._is_sending = False
        self._is_paused = False
        self._is_reset = False
        self._on_idle_event: Optional[Callable[[_Connection], None]] = None
        self._deadline = self._timer_at = 0.0
        self._timer: Optional[asyncio.TimerHandle] = None
        self._reads = self._writes = False  # What the loop watches for
        self._watch(True, False)
        self._poll = _poll_of(sock)

    def look(self) -> Optional[bytes]:
        """Return what has arrived, without waiting: None if nothing has, b'' at the end."""
        try:
            data = self._recv(self._bufsize)
            if not data and self._is_reset:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            return data
        except (BlockingIOError, ssl.SSLWantReadError):
            if self.arrived:
                self.arrived = False
                self._watch(True, self._writes)
        except ssl.SSLWantWriteError:
            self._watch(self._reads, True)
        return None

    def send_now(self, data: Union[bytes, memoryview]) -> int:
        """Send what can be without waiting, and return how many bytes that is."""
        if len(data) > self._send_bytes:
            data = memoryview(data)[:self._send_bytes]
        try:
            sent = self._send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return 0
        except ssl.SSLWantReadError:
            self._watch(self._reads, False)  # It is writable all the time
            return 0
        except ConnectionResetError:
            self._is_reset = True  # The system says so once, and ends what is received with b''
            raise
        self._send_bytes = _SEND_BYTES
        self.credit -= max(sent, _CALL_BYTES)
        return sent

    def receive(self, seconds: Optional[float] = None) -> Awaitable[bytes]:
        """Wait for the next bytes; b'' at the end. Raises OSError and asyncio.TimeoutError."""
        if self._is_tls and self._pending():
            return self.receive_more()
        if not self._reads:
            self._watch(True, self._writes)
        return self._completion(
            self._look_on if self._is_tls and seconds is None else self.look, seconds)

    def _look_on(self) -> Optional[bytes]:
        """look() at an event. If all that came is a part of a TLS record, it was no silence."""
        data = self.look()
        if data is None:
            self._deadline = self._loop.time() + self.timeout
        return data

    def receive_now(self) -> Optional[bytes]:
        """Return what has arrived, as more of a body probably has; None if nothing has."""
        if self._is_drained and not self.arrived and not self._poll(0) and \
                not (self._is_tls and self._pending()):
            return None
        data = self.look()
        if data is None:
            self._is_drained = True  # The peer is slower: a read is likely to be in vain again
            return None
        self._is_drained = False
        self.credit -= len(data) if len(data) > _CALL_BYTES else _CALL_BYTES
        return data

    async def receive_more(self) -> bytes:
        """The same as receive() where more has probably arrived already."""
        if self.credit <= 0:
            await self.give_turn()
        data = self.receive_now()
        return await self.receive() if data is None else data

    async def send(self, send_some: Callable[[], Optional[bool]]) -> None:
        """Wait until send_some(), which sends when that is possible, returns True.

        Returns early if something arrives.
        """
        self._watch(True, True)
        self._is_sending = True
        try:
            await self._completion(send_some)
        finally:
            self._is_sending = False

    def send_in_background(self, send_some: Callable[[], Optional[bool]]) -> None:
        """Call send_some() whenever the socket is writable and nobody waits, until it is done."""
        self._background = send_some
        self._watch(self._reads, True)

    async def handshake(self) -> None:
        """Do the TLS handshake, which may take the timeout as a whole."""
        if not self._handshake_now():
            await self._completion(self._handshake_now)

    def _handshake_now(self) -> Optional[bool]:
        try:
            self._sock.do_handshake()  # type: ignore[attr-defined]
            return True
        except ssl.SSLWantWriteError:
            self._watch(self._reads, True)
        except ssl.SSLWantReadError:
            pass
        return None

    async def give_turn(self) -> None:
        """Let other tasks run, after much was sent or received without a wait."""
        self.credit = _TURN_BYTES
        self._is_paused = True
        try:
            await asyncio.sleep(0)
        finally:
            self._is_paused = False

    def _completion(
            self, operation: Callable[[], Any], seconds: Optional[float] = None,
    ) -> asyncio.Future[Any]:
        """What `operation`, called at each event, returns when it is something other than None.

        If the wait for it is cancelled, the connection can only be closed.
        """
        self.credit = _TURN_BYTES
        self._operation, self._background = operation, None
        self._waiter = waiter = self._loop.create_future()
        self._set_deadline(self._loop.time() + (self.timeout if seconds is None else seconds))
        return waiter

    def _on_readable(self) -> None:
        if self._waiter is not None and not self._is_sending:
            self._attempt()
        elif self._on_idle_event is not None:
            if not self.is_quiet():
                self._on_idle_event(self)
        else:
            self.arrived = True
            if not self._is_paused:
                self._watch(False, self._writes)
                self._wake(False)

    def _on_writable(self) -> None:
        if self._waiter is None:
            if self._background is None or self._background() is not None:
                self._background = None
                self._watch(self._reads, False)
            return

        if self._is_sending:
            self.credit = _TURN_BYTES
            self._deadline = self._loop.time() + self.timeout  # The peer has taken something
        else:
            self._watch(self._reads, False)
        self._attempt()

    def _attempt(self) -> None:
        try:
            result = self._operation()  # type: ignore[misc]
        except Exception as exception:
            self._wake(exception)
        else:
            if result is not None:
                self._wake(result)

    def _wake(self, result: Any) -> None:
        # From now on, and before its task runs, nothing is for this waiter
        waiter, self._waiter = self._waiter, None
        self._operation = None  # A reference to self
        if waiter is not None and not waiter.done():
            if isinstance(result, Exception):
                waiter.set_exception(result)
            else:
                waiter.set_result(result)

    def is_quiet(self) -> bool:
        """Whether nothing has arrived, the end of the connection included."""
        try:
            return not self._poll(0) or self.look() is None
        except OSError:
            return False

    def rest(self, on_event: Callable[[_Connection], None]) -> None:
        """Be idle until an event: bytes, the end of the connection, or of `idle_seconds`."""
        if not self._reads:
            self._watch(True, self._writes)
        self._on_idle_event = on_event
        self._background = None
        self.rested_at = self._loop.time()
        self._set_deadline(self.rested_at + self.idle_seconds)
        if self._is_tls and self._pending():
            on_event(self)

    def _pending(self) -> int:
        """How many bytes TLS has decrypted, but were not asked for: no event tells of them."""
        return self._sock.pending()  # type: ignore[attr-defined, no-any-return]

    def wake_up(self) -> bool:
        """Be idle no more, and return whether the connection can be used."""
        self._on_idle_event = None
        self.arrived = False  # What the last response left behind: is_quiet() asks afresh
        self._send_bytes = self._first_send_bytes
        self.credit = _TURN_BYTES
        return self.is_quiet() and self._loop.time() < self._deadline

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is not None:
            if self._timer_at <= deadline:
                return  # It sets itself again when it finds the deadline moved
            self._timer.cancel()
        self._timer_at = deadline  # A timer of uvloop that is due has no when()
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiter is None and self._on_idle_event is None:
            return
        if self._loop.time() < self._deadline:
            self._set_deadline(self._deadline)
        elif self._waiter is not None:
            self._wake(asyncio.TimeoutError())
        else:
            self._on_idle_event(self)  # type: ignore[misc]

    def _watch(self, reads: bool, writes: bool) -> None:
        """Have the loop watch for what is asked for, by changes alone: each costs 14 us."""
        if reads != self._reads:
            self._reads = reads
            if reads:
                self._loop.add_reader(self._fileno, self._on_readable)
            else:
                self._loop.remove_reader(self._fileno)
        if writes != self._writes:
            self._writes = writes
            if writes:
                self._loop.add_writer(self._fileno, self._on_writable)
            else:
                self._loop.remove_writer(self._fileno)

    def close(self) -> None:
        """Close; TLS sends its close_notify, but doesn't wait for the peer's."""
        self._on_idle_event = self._background = self._waiter = self._operation = None
        if self._timer is not None:
            self._timer.cancel()
        if self._sock.fileno() != -1 and not self._loop.is_closed():
            self._watch(False, False)  # Before the number of the socket is another one's
        if self._is_tls:
            with contextlib.suppress(OSError, ValueError):
                self._sock.unwrap()  # type: ignore[attr-defined]
        self._sock.close()

    def abandon(self) -> None:
        """Close from the garbage collector: on any thread, at any time."""
        if threading.get_ident() == self._thread:
            self.close()
            return
        # A loop that has ended, but is not closed yet, forgets it uncalled when it is
        close = functools.partial(self.close)
        weakref.finalize(close, self.close)
        with contextlib.suppress(RuntimeError):  # The loop is closed
            self._loop.call_soon_threadsafe(close)


def _poll_of(sock: socket.socket) -> Callable[[int], Any]:
    """What asks whether anything has arrived: a read that finds nothing takes three times as long,
    since it raises.
    """
    if not hasattr(select, 'poll'):  # On Windows
        return lambda _: True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return poll.poll


def _is_connected(sock: socket.socket) -> Optional[bool]:
    """Whether an attempt has succeeded; None if it goes on, but not within this machine."""
    if not hasattr(select, 'poll'):
        return None
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    events = poll.poll(0)
    return events[0][1] == select.POLLOUT if events else None


def _error_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


class _Attempts:
    """Attempts to connect to the addresses of a host, which overlap, in this task (RFC 8305 5).

    The next one starts when one fails, or 250 ms after the last one. The first to connect wins.
    Why others fail is written to `failures`, by address. `makes_room` is to close something if no
    descriptor is free, and return whether to try again.
    """

    __slots__ = (
        '_deadline', '_error', '_failures', '_get_sock', '_is_decided', '_loop',
        '_makes_room', '_pending', '_port', '_untried', '_waiter', '_winners')

    def __init__(  # noqa: PLR0913
            self, loop: asyncio.AbstractEventLoop, get_sock: Callable[..., socket.socket],
            makes_room: Callable[[Optional[int]], bool], addresses: Iterable[str], port: int,
            failures: Dict[str, str],
    ) -> None:
        self._loop = loop
        self._get_sock = get_sock
        self._makes_room = makes_room
        self._untried = list(addresses)
        self._port = port
        self._deadline = 0.0
        self._is_decided = False
        self._waiter: Optional[asyncio.Future[None]] = None  # Most need none
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
                if self._untried:
                    self._start(self._untried.pop(0))
                elif not self._pending:
                    raise self._error
                if not self._winners:
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
        if not self._is_decided:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_at(min(next_at, self._deadline), self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
        self._is_decided = False
        if not self._winners and self._loop.time() >= self._deadline:
            raise asyncio.TimeoutError

    def _start(self, address: str, is_last_try: bool = False) -> None:
        try:
            peer = _zoned(address, self._port) if '%' in address else (address, self._port)
            sock = _new_sock(self._get_sock, address)
        except OSError as exception:
            if not is_last_try and self._makes_room(exception.errno):
                self._start(address, True)
            else:
                self._fail(address, exception)
            return
        self._pending[sock] = address
        error = sock.connect_ex(peer)
        if error not in _IN_PROGRESS:
            self._decide(sock, error)
            return
        is_connected = _is_connected(sock)
        if is_connected is None:
            self._loop.add_writer(sock.fileno(), self._on_writable, sock)
        else:
            self._decide(sock, 0 if is_connected else _error_of(sock))

    def _on_writable(self, sock: socket.socket) -> None:
        self._loop.remove_writer(sock.fileno())
        self._decide(sock, _error_of(sock))

    def _decide(self, sock: socket.socket, error: int) -> None:
        address = self._pending.pop(sock)
        if not error and _is_own_peer(sock, self._port):
            error = errno.ECONNREFUSED
        if error:
            sock.close()
            self._fail(address, OSError(error, os.strerror(error)))
            return
        self._winners.append((sock, address))
        self._wake()

    def _fail(self, address: str, error: OSError) -> None:
        self._error = self._error or error
        self._failures[address] = error.strerror or str(error)
        self._wake()

    def _wake(self) -> None:
        self._is_decided = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _is_own_peer(sock: socket.socket, port: int) -> bool:
    """Whether a socket is connected to itself: its own port was the one that nobody listens on."""
    try:
        name = sock.getsockname()
        return bool(name[1:2] == (port,) and name == sock.getpeername())
    except OSError:
        return False  # Of a connection that is reset by now


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


# ---- Exchange (RFC 9110 10.1.1, RFC 9112 9.3) ---------------------------------------------------


# Pieces of a request are gathered up to this size, to leave in one packet
_PACKET_BYTES = 65536

# RFC 9110 10.1.1: how long to wait for a 100, which some servers never send
_CONTINUE_SECONDS = 1

# More than any server sends on purpose: one that reports progress with 102 does so each 20 s
_MAX_INTERIM_RESPONSES = 100


class _NothingSentError(Exception):
    """The connection was dead before it took a byte of the request."""


class _Exchange:
    """A request on its way, and the head of its response.

    It outlives a connection that turns out to be dead before it took a byte.
    """

    __slots__ = (
        '_any_sent', '_body', '_body_arguments', '_chunks', '_connection', '_decoder', '_failure',
        '_framing', '_has_continued', '_interim_responses', '_is_to_close', '_limit', '_unsent',
        '_unsent_bytes', 'is_ended', 'received')

    def __init__(
            self, head: bytes, framing: Dict[bytes, bytes], limit: int,
            body: Callable[..., AsyncIterable[Any]],
            body_arguments: Tuple[Tuple[Any, ...], Dict[str, Any]],
    ) -> None:
        if not callable(body):
            raise TypeError('body must be a function that returns an asynchronous iterable, not '
                            '%s: %s' % (type(body).__name__, _body_advice(body)))
        self.received = b''  # In the end, what came after the head
        self._connection: Any = None
        self._limit = limit
        self._framing = framing
        self._decoder = _request_decoder(framing) if framing else None
        self._body = body
        self._body_arguments = body_arguments
        self._chunks: Any = None
        self.is_ended = body is empty_async_iterator and self._decoder is None
        self._unsent: List[Union[bytes, memoryview]] = [head]
        self._unsent_bytes = len(head)
        self._any_sent = False
        self._failure: Optional[OSError] = None  # Of the last attempt to send
        self._has_continued = False
        self._is_to_close = False  # As an interim response said (RFC 9112 9.6)
        self._interim_responses = 0

    async def response_head(self, connection: _Connection) -> _Head:
        """Send the request, and return the head of the final response to it."""
        self._connection, self._failure, self.received = connection, None, b''
        head = None
        try:
            if not self.is_ended:
                head = await self._send_body()
            elif not self._flush():
                head = await self._send()
            else:
                head = self._fed(await connection.receive())  # There can be nothing yet
            while head is None:
                head = self._fed(await connection.receive_more())
        except (OSError, asyncio.TimeoutError) as exception:
            raise _receive_error(exception, 'head', connection) from exception
        return head

    def persistence(self, version: bytes) -> float:
        """How many seconds the request lets the connection live on; 0 if it isn't sent whole."""
        if self._unsent or not self.is_ended or self._is_to_close:
            return 0
        if not self._framing and version == b'HTTP/1.1':
            return float('inf')
        return _stated_persistence(version == b'HTTP/1.1', self._framing.get(b'connection', b''))

    async def aclose(self) -> None:
        """Close the caller's asynchronous generator, unless it has ended."""
        aclose = None if self.is_ended else getattr(self._chunks, 'aclose', None)
        self.is_ended = True
        self._unsent.clear()  # It keeps the caller's buffers from being resized
        if aclose is not None:
            try:
                await aclose()
            except Exception as exception:
                raise HttpDataError('the body of the request raised %r when it was closed'
                                    % exception) from exception

    def _fed(self, data: bytes) -> Optional[_Head]:
        """Take what is received; return the final response's head if it is whole."""
        if not data:
            raise HttpConnectionClosedError('the server closed the connection %s' % (
                'within the head of its response' if self.received else
                'after an interim response' if self._interim_responses else
                'without a response'))

        searched = len(self.received)
        self.received += data
        while True:
            end = _end_of_head(self.received, searched, self._limit)
            if end < 0:
                return None
            head = _response_head(self.received[:end])
            self.received = self.received[end + 4:]
            # RFC 9110 15.2; a 101 is final, as what follows it isn't HTTP
            if head[0] >= b'200' or head[0] == b'101' or head[0] < b'100':
                return head

            searched = 0
            self._has_continued |= head[0] == b'100'
            self._is_to_close |= b'close' in _tokens(b','.join(
                value for name, value in head[2] if name == b'connection'))
            self._interim_responses += 1
            if self._interim_responses > _MAX_INTERIM_RESPONSES:
                raise HttpInvalidResponse('the server sent more than %d interim responses'
                                          % _MAX_INTERIM_RESPONSES)

    async def _send_body(self) -> Optional[_Head]:
        head = None
        if b'100-continue' in _tokens(self._framing.get(b'expect', b'')) and self._decoder:
            head = await self._send() or await self._continued()
        while head is None and not self.is_ended:
            await self._fill()
            if not self._flush() or self._connection.arrived:  # A coroutine less for each piece
                head = await self._send()
        return head

    async def _send(self) -> Optional[_Head]:
        """Send what is unsent. If a final response arrives first, return its head."""
        connection = self._connection
        head = None
        try:
            while not self._flush() or connection.arrived:
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    return self._head_in_spite_of(failure)
                if not connection.arrived:
                    await connection.send(self._flush)
                    continue
                if not self._any_sent and connection.rested_at and not connection.is_quiet():
                    raise _NothingSentError  # What has come can't be the response
                data = connection.look()
                head = None if data is None else self._fed(data)
                if head is not None:
                    break
        except asyncio.TimeoutError as exception:
            raise self._error(HttpConnectionError)(
                'the server took nothing of the request for %s seconds (socket_timeout)'
                % connection.timeout) from exception
        return head

    def _flush(self) -> Optional[bool]:
        """Send what the connection takes in this turn: True is all, None some, False failed."""
        if not self._any_sent and self._chunks is not None and self._failure is None and \
                self._connection.rested_at and not self._connection.is_quiet():
            # It was when it left the pool, but the caller's body may have taken its time since
            self._failure = ConnectionError('the server closed the idle connection')
        if self._failure is not None:
            return False

        unsent = self._unsent
        if len(unsent) > 1 and len(unsent[0]) < _PACKET_BYTES:
            # They leave in one packet. Of a large chunk it is just the start, since this copies
            *pieces, last = unsent
            rest = memoryview(last)[_PACKET_BYTES:]
            unsent[:] = [b''.join((*pieces, last[:_PACKET_BYTES])), *((rest,) if rest else ())]

        while unsent:
            data = unsent[0]
            try:
                sent = self._connection.send_now(data)
            except OSError as exception:
                self._failure = exception
                return False
            if sent:
                self._any_sent = True
                self._unsent_bytes -= sent
            if sent == len(data):
                del unsent[0]
            else:
                unsent[0] = memoryview(data)[sent:]
                if not sent or self._connection.credit <= 0:
                    return None
        return True

    def _flush_in_background(self) -> None:
        if self._flush() is None:
            self._connection.send_in_background(self._flush)

    def _head_in_spite_of(self, failure: OSError) -> _Head:
        """The head of what a server sent before it closed its reading side."""
        if not self._any_sent:
            raise _NothingSentError from failure
        with contextlib.suppress(OSError, HttpConnectionClosedError):
            data = self._connection.look()
            while data is not None:
                head = self._fed(data)
                if head is not None:
                    return head
                data = self._connection.look()
        raise HttpConnectionClosedError('the connection was closed before the whole request was '
                                        'sent: %s' % failure) from failure

    async def _continued(self) -> Optional[_Head]:
        """Wait for a 100, but not for long; return the head of a final response if that comes."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _CONTINUE_SECONDS
        head = None
        while head is None and not self._has_continued:
            try:
                head = self._fed(await self._connection.receive(give_up_at - loop.time()))
            except asyncio.TimeoutError:
                break
        return head

    async def _fill(self) -> None:
        """Take what the caller's body has at once, and send it whenever the body has to wait."""
        connection = self._connection
        while not self.is_ended and self._unsent_bytes < _PACKET_BYTES and not connection.arrived:
            if connection.credit <= 0:
                await connection.give_turn()
            connection.credit -= _CALL_BYTES
            try:
                chunk = await self._next_chunk()
            except StopAsyncIteration:
                self.is_ended = True
                chunk = b''
            except Exception as exception:
                is_argument = self._chunks is None and isinstance(exception, TypeError)
                raise self._error(HttpInvalidRequest if is_argument else HttpConnectionError)(
                    'the body of the request raised %r' % exception) from exception

            try:
                if type(chunk) is not bytes:
                    chunk = _constant(chunk)
                is_checked = self._check(chunk) if chunk or self.is_ended else True
                while not is_checked:
                    await connection.give_turn()
                    is_checked = self._check(None)
            except (TypeError, ValueError) as exception:
                raise self._error(HttpInvalidRequest)(
                    'the body of the request: %s' % exception) from exception
            if chunk:
                self._unsent.append(chunk)
                self._unsent_bytes += len(chunk)

    def _next_chunk(self) -> Awaitable[Any]:
        """Ask the caller's body for a chunk. If it has to wait, what is unsent is sent."""
        if self._chunks is None:
            args, kwargs = self._body_arguments
            self._chunks = _async_iterator(self._body(*args, **kwargs))
        return _on_suspension(self._chunks.__anext__(), self._flush_in_background)

    def _check(self, chunk: Any) -> bool:
        """Hold the body to its framing; b'' is its end. Return False to be called with None."""
        unused = chunk
        if self._decoder is not None:
            try:
                _, unused = self._decoder.send(chunk)
            except HttpDataError as exception:
                raise ValueError(
                    '%s%s' % (exception, _CHUNKS_ADVICE if self._framing.get(b'transfer-encoding')
                              else '')) from None
            if unused is None:
                return True
            if unused is not False:
                self._decoder = None
        if unused:
            raise ValueError(
                'it goes on after its last chunk' if b'transfer-encoding' in self._framing else
                'it has more bytes than content-length says' if b'content-length' in self._framing
                else 'it has bytes, but neither content-length nor transfer-encoding is given: '
                "(b'content-length', b'%d' % len(data)) in headers is enough")
        return unused is not False

    def _error(self, if_nothing_is_sent: Type[HttpError]) -> Type[HttpError]:
        return HttpDataError if self._any_sent else if_nothing_is_sent


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


@types.coroutine
def _on_suspension(
        awaitable: Awaitable[Any], function: Callable[[], Any],
) -> Generator[Any, None, Any]:
    """Await, and call a function whenever that suspends: concurrency without a task."""
    iterator: Any = awaitable.__await__()
    step: Any = iterator.__next__
    while True:
        try:
            future = step()
        except StopIteration as stop:
            return stop.value
        finally:
            step = None  # It may have an exception whose traceback has this frame
        function()
        try:
            yield future
            step = iterator.__next__
        except BaseException as exception:
            step = functools.partial(iterator.throw, exception)


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


# ---- Response body ------------------------------------------------------------------------------


class _ResponseBody:
    """The body of a response: an asynchronous iterator of bytes.

    Until its end it owns the connection. It hands it back with the last byte, or closes it: on
    failure, at `aclose`, or when it is garbage collected.
    """

    __slots__ = (
        '__weakref__', '_chunk', '_connection', '_decoder', '_failure', '_finalizer',
        '_is_behind', '_is_read', '_log', '_release')

    def __init__(
            self, connection: _Connection, decoder: Iterator[_Decoded],
            release: Callable[[_Connection, bytes, Optional[_Log]], None], log: Optional[_Log],
    ) -> None:
        self._connection: Optional[_Connection] = connection  # None from the end of the body on
        self._is_read = False
        self._failure: Optional[Callable[[], HttpDataError]] = None
        try:
            self._chunk, unused = next(decoder)  # What came with the head
        except HttpDataError as exception:
            self._chunk = b''
            self._finalizer = None
            self._fail(exception)
            return

        if unused is not None and unused is not False:
            self._connection = None
            release(connection, unused, log)
            return
        self._decoder: Any = decoder
        self._is_behind = unused is False  # With decoding what has been received
        self._release = release
        self._log = log
        # And not __del__: in a reference cycle the socket's own finaliser may come first
        self._finalizer = weakref.finalize(self, connection.abandon)

    def __aiter__(self) -> _ResponseBody:
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes of the body as they arrive. Raises HttpDataError."""
        if self._chunk:
            chunk, self._chunk = self._chunk, b''
            return chunk
        connection = self._connection
        if connection is None:
            raise StopAsyncIteration if self._failure is None else self._failure()

        self._check_not_read()
        self._is_read = True
        try:
            chunk = await self._more(connection)
        except BaseException as exception:
            self._fail(exception)
            raise
        finally:
            self._is_read = False
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Close the connection, unless the whole body has arrived. What is unread is lost."""
        self._check_not_read()
        self._chunk = b''
        if self._connection is not None:
            self._detached().close()

    async def _more(self, connection: _Connection) -> bytes:
        """Return more of the body, or b'' at its end."""
        chunk: bytes = b''
        try:
            while not chunk and self._connection is not None:
                if self._is_behind or connection.credit <= 0:
                    await connection.give_turn()
                data = None
                if not self._is_behind:
                    # And not receive_more(): of each 64 KiB, a coroutine is a tenth
                    data = connection.receive_now()
                    if data is None:
                        data = await connection.receive()
                chunk, unused = self._decoder.send(data)
                self._is_behind = unused is False
                if unused is not None and unused is not False:
                    self._release(self._detached(), unused, self._log)
        except (OSError, asyncio.TimeoutError) as exception:
            raise _receive_error(exception, 'body', connection) from exception
        return chunk

    def _fail(self, exception: BaseException) -> None:
        """Close the connection, and have the same raised whenever the body is asked again."""
        if self._connection is not None:
            self._detached().close()
        if not isinstance(exception, HttpDataError):
            exception = HttpDataError('the body of the response was given up: %r' % exception)
        self._failure = functools.partial(type(exception), *exception.args)

    def _detached(self) -> _Connection:
        connection, self._connection = self._connection, None
        assert connection is not None
        if self._finalizer is not None:
            self._finalizer.detach()
        return connection

    def _check_not_read(self) -> None:
        if self._is_read:
            raise RuntimeError('the body of the response is being read already')


# ---- Pool ---------------------------------------------------------------------------------------


# On by default in Python 3.10 and newer: a TLS connection that is cut would look closed
_OP_IGNORE_UNEXPECTED_EOF = getattr(ssl, 'OP_IGNORE_UNEXPECTED_EOF', 0)

_Answer = Tuple[float, Sequence[str]]  # Of name resolution: when addresses expire, and they
_NO_ANSWER: _Answer = (0.0, ())
_NEVER = float('inf')


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
    get_logger_adapter(extra), get_resolver_logger_adapter(http_extra)(extra): return what logs

    Raises ValueError for another http_version or a number that can't be, TypeError for what is not
    a function, RuntimeError outside of a loop, and NotImplementedError where the loop can't watch
    sockets.
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

    pool: Dict[_Key, Dict[_Connection, None]] = {}  # The most recently used of a key is last
    answers: Dict[str, _Answer] = {}  # By the key of an origin
    lasting_answers: Dict[str, Sequence[str]] = {}  # Of /etc/hosts, to be had without a call
    ssl_context: Optional[ssl.SSLContext] = None
    closed = False
    resolve, clear_cache = get_dns_resolver(get_logger_adapter=get_resolver_logger_adapter({}))

    async def request(  # noqa: C901, PLR0913
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

        Raises HttpConnectionError if nothing was sent, so that it is safe to try again, and
        otherwise HttpDataError (RFC 9110 9.2.2). Reading the body can raise HttpDataError too.
        """
        if closed:
            raise HttpConnectionError('the pool is closed: make another one with Pool()')
        try:
            origin, target = _url_parts(url)
            block, framing = _request_head(
                http_version, method, origin.host_field,
                _with_params(target, params) if params else target, headers)
            exchange = _Exchange(
                block, framing, max_header_length, body, _body_arguments(body_args, body_kwargs))
        except (TypeError, ValueError) as exception:
            raise HttpInvalidRequest(str(exception)) from exception

        log = _debug(get_logger_adapter, method, url)
        try:
            while True:
                connection = reused(
                    origin, origin.addresses or lasting_answers.get(origin.key) or
                    known_addresses(origin)) or await connected(
                        origin, log, get_resolver_logger_adapter(_extra(method, url)))
                if log:
                    log('Using connection: %s', connection.key)
                try:
                    head = await exchange.response_head(connection)
                    if log:
                        log('Received head: %s', head[0])
                    seconds = exchange.persistence(http_version)
                    if not seconds:
                        await exchange.aclose()  # And what is unsent stays so
                    decoder, stated_seconds = _response_framing(
                        method, head, exchange.received, max_header_length)
                    connection.idle_seconds = min(keep_alive_timeout, seconds, stated_seconds)
                    return head[0], head[2], _ResponseBody(connection, decoder, release, log)
                except _NothingSentError as exception:
                    connection.close()
                    refuse_if_new(connection, exception.__cause__)
                except BaseException:
                    connection.close()
                    raise
        except BaseException as exception:
            with contextlib.suppress(Exception):
                await exchange.aclose()
            # Here it costs nothing; in Python 3.11 and older to ask is a system call
            if isinstance(exception, Exception) and asyncio.get_running_loop() is not loop:
                raise RuntimeError('the pool belongs to another event loop: make one with Pool() '
                                   'in each') from exception
            raise

    def refuse_if_new(connection: _Connection, reason: Optional[BaseException]) -> None:
        # One from the pool may have been closed by its server at any time: the next one is tried
        if not connection.rested_at:
            raise HttpConnectionError(
                'the connection was closed before anything was sent: %s' % reason) from reason

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
            pool[connection.key] = {connection: None}
        else:
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
            # It looks, even if the loop has noticed nothing, for it may have had no time to: what
            # arrived before the request must not be taken for its response
            if latest.wake_up():
                return latest
            latest.close()

    async def connected(
            origin: _Origin, log: Optional[_Log], get_logger_adapter: _GetLoggerAdapter,
    ) -> _Connection:
        """Return a new connection, or one that name resolution shows to be reusable."""
        failures: Dict[str, str] = {}
        expires_at, addresses = await current_answer(origin, get_logger_adapter)
        try:
            connection = reused(origin, addresses) or \
                await new_connection(origin, addresses, failures, log)
            is_remembered = connection.key[1] == addresses[0]
        except HttpTlsError:
            raise
        except HttpConnectionError:
            expires_at, addresses = await other_answer(origin, addresses, get_logger_adapter)
            if not addresses:
                raise
            connection = reused(origin, addresses) or \
                await new_connection(origin, addresses, failures, log)
            is_remembered = False
        if not is_remembered:  # So that the next request waits for nothing
            remember(origin, expires_at, sorted(addresses, key=connection.key[1].__ne__))
        return connection

    async def new_connection(
            origin: _Origin, addresses: Sequence[str], failures: Dict[str, str],
            log: Optional[_Log],
    ) -> _Connection:
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
            raise kind('%s %s, port %d: %s' % (
                'no TLS with' if kind is HttpTlsError else 'no connection to',
                origin.host, origin.port, reason)) from exception

    def makes_room(error: Optional[int] = errno.EMFILE) -> bool:
        """Close what has been idle longest if no descriptor is free; False if that is no cure."""
        if error not in (errno.EMFILE, errno.ENFILE):  # Of the process, of the system
            return False
        try:
            for descriptor in os.pipe():
                os.close(descriptor)
        except OSError:
            idle = sorted(itertools.chain.from_iterable(pool.values()),
                          key=operator.attrgetter('rested_at'))
            for connection in idle[:1 + len(idle) // 8]:  # Some, as to sort them takes its time
                drop(connection)
            return bool(idle)
        return True

    def known_addresses(origin: _Origin) -> Sequence[str]:
        expires_at, addresses = answers.get(origin.key, _NO_ANSWER)
        return addresses if loop.time() < expires_at else ()

    async def current_answer(origin: _Origin, get_logger_adapter: _GetLoggerAdapter) -> _Answer:
        """Return A records, or AAAA records where there is none; kept for as long as they live."""
        addresses = origin.addresses or lasting_answers.get(origin.key)
        if addresses:
            return _NEVER, addresses
        if known_addresses(origin):
            return answers[origin.key]

        try:
            answer = await resolved(origin.host, TYPES.A, get_logger_adapter)
        except HttpDnsError as exception:
            if not isinstance(exception.__cause__, DnsRecordDoesNotExist):
                raise
            answer = await resolved(origin.host, TYPES.AAAA, get_logger_adapter)
        remember(origin, *answer)
        return answer

    async def other_answer(
            origin: _Origin, addresses: Sequence[str], get_logger_adapter: _GetLoggerAdapter,
    ) -> _Answer:
        """Addresses of the other IP version, to try where none of these accepts a connection."""
        is_ipv6 = ':' in addresses[0]
        if not origin.addresses:
            with contextlib.suppress(HttpDnsError):
                expires_at, others = await resolved(
                    origin.host, TYPES.A if is_ipv6 else TYPES.AAAA, get_logger_adapter)
                # A resolver that looks at no type gives those again that were tried
                return expires_at, [other for other in others if (':' in other) != is_ipv6]
        return _NO_ANSWER

    def remember(origin: _Origin, expires_at: float, addresses: Sequence[str]) -> None:
        if expires_at == _NEVER:
            _remember(lasting_answers, origin.key, addresses)
        else:
            _remember(answers, origin.key, (expires_at, addresses))

    async def resolved(
            host: str, record_type: int, get_logger_adapter: _GetLoggerAdapter,
    ) -> _Answer:
        try:
            try:
                records = list(await resolve(
                    host, record_type, get_logger_adapter=get_logger_adapter))
            except OSError as exception:
                if not makes_room(exception.errno):
                    raise
                records = list(await resolve(
                    host, record_type, get_logger_adapter=get_logger_adapter))
        except Exception as exception:
            has_words = isinstance(exception, (DnsError, OSError)) and exception.args
            raise HttpDnsError('%s could not be resolved: %s' % (
                host, exception if has_words else repr(exception))) from exception
        if closed:
            await clear_cache(get_logger_adapter=get_logger_adapter)  # And its timer
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
        """Close the idle connections now, and each of the others once its response has ended.

        From then on, a new request raises HttpConnectionError.
        """
        nonlocal closed
        closed = True
        log = _debug(get_logger_adapter)
        if log:
            log('Closing pool')
        for connections in list(pool.values()):
            for connection in list(connections):
                drop(connection)
        answers.clear()
        lasting_answers.clear()
        await clear_cache(get_logger_adapter=get_resolver_logger_adapter({}))

    return request, close
