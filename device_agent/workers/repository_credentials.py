"""The credentials that the fetcher sends to servers and proxies, and the authorities that it trusts.

Rules:
1. Only this process reads the files. The supervisor opens them and sends the descriptors, again when they change.
2. Credentials are sent to the origins of `credential_origins` and to no other, also after a redirect.
3. No message contains a value; errors name the key and the file.
4. The system's certificate authorities are read before the jail closes the files. OpenSSL would read a folder of
   certificates at the first connection, when that fails.
"""

import base64
import contextlib
import logging
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from device_agent.config.repository import check_headers
from device_agent.errors import ConfigInvalid
from device_agent.process.channel import Message
from device_agent.runtime.bundle_fds import create_sealed_memfd

logger = logging.getLogger(__name__)

MAX_CREDENTIAL_BYTES: Final = 64 * 1024
MAX_CERTIFICATE_BYTES: Final = 8 * 1024 * 1024
CERTIFICATE_KEYS: Final = ("ca_file", "client_cert", "client_key")
TOKEN_PATTERN: Final = re.compile(r"[\x21-\x7e]{1,32768}")
PEM_PATTERN: Final = re.compile(
    rb"-----BEGIN (?:X509 )?CERTIFICATE-----[\sA-Za-z0-9+/=]+-----END (?:X509 )?CERTIFICATE-----"
)
# bundles of distributions, for a Python whose OpenSSL was built with other default paths
CA_BUNDLES: Final = (
    *("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"),
    "/etc/ssl/cert.pem",
)
HASHED_NAME_PATTERN: Final = re.compile(r"[0-9a-f]{8}\.[0-9]+")


@dataclass(frozen=True, slots=True)
class SystemAuthorities:
    """The certificate authorities that the system trusts.

    Attributes:
        pem: their certificates, one after the other.
        problem: why a configured file could not be read, or "".
    """

    pem: str = ""
    problem: str = ""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "SystemAuthorities":
        """Read the files that OpenSSL would read; if they are empty, the bundle of the distribution."""
        paths = ssl.get_default_verify_paths()
        file = environment.get("SSL_CERT_FILE", paths.openssl_cafile)
        problem = ""
        blocks = _read_certificates(file)
        if not blocks and "SSL_CERT_FILE" in environment:
            problem = f"SSL_CERT_FILE names {file}, which has no readable certificate"
        folder = Path(environment.get("SSL_CERT_DIR", paths.openssl_capath))
        if not blocks and folder.is_dir():
            for path in sorted(folder.iterdir()):
                if HASHED_NAME_PATTERN.fullmatch(path.name):
                    blocks += _read_certificates(path)
        if not {"SSL_CERT_FILE", "SSL_CERT_DIR"} & environment.keys():
            for bundle in CA_BUNDLES:
                blocks = blocks or _read_certificates(bundle)
        return cls("\n".join(blocks), problem)


@dataclass(frozen=True, slots=True)
class RepositoryCredentials:
    """Header fields and TLS contexts.

    Attributes:
        credential_origins: origins that get the header fields and the client certificate.
        headers: the header fields, `Authorization` included.
        proxy_authorization: value of `Proxy-Authorization`, or "".
        private_context: TLS context for these origins.
        public_context: TLS context for all others, without a client certificate.
    """

    credential_origins: frozenset[str]
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    proxy_authorization: str = field(repr=False)
    private_context: ssl.SSLContext
    public_context: ssl.SSLContext

    @property
    def has_client_certificate(self) -> bool:
        """True if a client certificate is configured."""
        return self.private_context is not self.public_context


def no_credentials(authorities: SystemAuthorities) -> RepositoryCredentials:
    """Return the credentials of a device that has none.

    Args:
        authorities: the certificate authorities to trust.
    """
    context = _create_context(authorities.pem)
    return RepositoryCredentials(frozenset(), (), "", context, context)


def read_credentials(message: Message, authorities: SystemAuthorities) -> RepositoryCredentials:
    """Read the credentials of a `configure` call.

    Args:
        message: fields `credential_origins`, `headers`, `system_ca`, and `files`, the pairs of key and path that the
            descriptors belong to, in their order.
        authorities: the system's certificate authorities.

    Raises:
        ConfigInvalid: a file is empty, too long or malformed, or certificate and key do not belong together.
    """
    value = message.value
    paths = {str(key): str(path) for key, path in value["files"]}
    data = {key: _read_file(fd, key, paths[key]) for key, fd in zip(paths, message.fds, strict=True)}
    pem = authorities.pem if value["system_ca"] else ""
    if value["system_ca"] and authorities.problem:
        logger.warning("%s", authorities.problem)
    if "ca_file" in data:
        blocks = _find_certificates(data["ca_file"])
        if not blocks:
            raise _invalid("ca_file", paths, "has no certificate in PEM form")
        pem = "\n".join([pem, *blocks])
    public = private = _create_context(pem)
    if "client_cert" in data:
        private = _create_context(pem)
        _load_client_certificate(private, data["client_cert"], data["client_key"], paths)
    headers = [(str(name), str(text)) for name, text in value["headers"]]
    if "headers_file" in data:
        headers += _parse_headers(data["headers_file"], paths)
    if "token_file" in data:
        token = _decode(data["token_file"], "token_file", paths).strip()
        if not TOKEN_PATTERN.fullmatch(token):
            raise _invalid("token_file", paths, "does not have one token of printable ASCII")
        headers.append(("Authorization", f"Bearer {token}"))
    if "basic_auth_file" in data:
        headers.append(("Authorization", basic_authorization(_read_login(data, "basic_auth_file", paths))))
    if sum(name.lower() == "authorization" for name, _ in headers) > 1:
        raise _invalid("headers_file", paths, "has Authorization, which another key sets, too")
    proxy_login = _read_login(data, "proxy_auth_file", paths) if "proxy_auth_file" in data else ""
    return RepositoryCredentials(
        credential_origins=frozenset(str(origin) for origin in value["credential_origins"]),
        headers=tuple(headers),
        proxy_authorization=basic_authorization(proxy_login) if proxy_login else "",
        private_context=private,
        public_context=public,
    )


def basic_authorization(login: str) -> str:
    """Return the value of an `Authorization` field from "USER:PASSWORD" (RFC 7617)."""
    return "Basic " + base64.b64encode(login.encode()).decode()


def _create_context(pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if hasattr(ssl, "VERIFY_X509_PARTIAL_CHAIN"):  # as ssl.create_default_context does since Python 3.13
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if pem:
        context.load_verify_locations(cadata=pem)
    return context


def _load_client_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes, paths: dict[str, str]) -> None:
    def no_passphrase() -> str:
        raise _invalid("client_key", paths, "is encrypted, expected a key without a passphrase in a file of mode 0600")

    with contextlib.ExitStack() as stack:
        # ssl reads files only; a memfd is one that the jail leaves open
        names: list[str] = []
        for name, data in (("client-cert", certificate), ("client-key", key)):
            fd = create_sealed_memfd(name, data)
            stack.callback(os.close, fd)
            names.append(f"/proc/self/fd/{fd}")
        try:
            context.load_cert_chain(names[0], names[1], no_passphrase)
        except (ssl.SSLError, OSError) as error:
            cause = getattr(error, "reason", None) or error.strerror or "not in PEM form"
            raise _invalid("client_cert", paths, f"does not load with its client_key: {cause}") from error


def _read_file(fd: int, key: str, path: str) -> bytes:
    limit = MAX_CERTIFICATE_BYTES if key in CERTIFICATE_KEYS else MAX_CREDENTIAL_BYTES
    parts, offset = [], 0
    while offset <= limit and (data := os.pread(fd, limit + 1 - offset, offset)):
        parts.append(data)
        offset += len(data)
    if not 0 < offset <= limit:
        raise _invalid(key, {key: path}, f"has {'no' if not offset else 'too many'} bytes, expected 1 to {limit}")
    return b"".join(parts)


def _read_login(data: dict[str, bytes], key: str, paths: dict[str, str]) -> str:
    login = _decode(data[key], key, paths).strip("\r\n")
    if ":" not in login or not login.isprintable():
        raise _invalid(key, paths, "does not have one line USER:PASSWORD")
    return login


def _parse_headers(data: bytes, paths: dict[str, str]) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(_decode(data, "headers_file", paths).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, value = line.partition(":")
        if not separator:
            raise _invalid("headers_file", paths, f"line {number} has no colon, expected `Name: value`")
        rows.append((name.strip(), value.strip()))
    try:
        check_headers(rows)
    except ValueError as error:
        raise _invalid("headers_file", paths, str(error)) from error
    return rows


def _decode(data: bytes, key: str, paths: dict[str, str]) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")  # not utf-8-sig, a module that the jail would not load
    except UnicodeDecodeError as error:
        raise _invalid(key, paths, "is not UTF-8 text") from error


def _read_certificates(path: str | Path) -> list[str]:
    try:
        with open(path, "rb") as stream:
            return _find_certificates(stream.read(MAX_CERTIFICATE_BYTES))
    except OSError:
        return []


def _find_certificates(data: bytes) -> list[str]:
    # the blocks alone: comments between them may have any encoding, and ssl accepts ASCII only
    return [block.decode("ascii") for block in PEM_PATTERN.findall(data)]


def _invalid(key: str, paths: Mapping[str, str], problem: str) -> ConfigInvalid:
    return ConfigInvalid(f"repository.{key}: {paths.get(key) or 'the file'} {problem}")
