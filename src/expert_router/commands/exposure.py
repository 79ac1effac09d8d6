"""Who could reach a listener, and whether that is meant: nothing is open to others by accident."""

from __future__ import annotations

import ssl
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from expert_router.errors import ConfigError
from expert_router.keys import read_keys

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from expert_router.settings import Settings


def require_closed(listener: socket.socket, settings: Settings, *, insecure: bool) -> None:
    """Raises ``ConfigError`` where others than this machine could connect, nobody needs a key, and that is not meant.

    And where the keys cannot be read. Call it between binding and listening: nobody is let in before.
    """
    if settings.server.keys is not None:
        read_keys(settings.resolve(settings.server.keys))
        return
    host = listener.getsockname()[0]
    if insecure or settings.server.insecure or _is_loopback(host):
        return
    listener.close()
    raise ConfigError(
        f"Whoever reaches {host} could use this without a key: set server.keys and make one (expert-router keys add "
        "NAME), or listen on 127.0.0.1, or say --insecure where that is meant."
    )


def tls_files(settings: Settings) -> tuple[Path, Path | None] | None:
    """Certificate and key to encrypt with, if any. Raises ``ConfigError`` when they do not belong together."""
    if settings.server.tls_cert is None:
        if settings.server.tls_key is not None:
            raise ConfigError("server.tls_key is set without server.tls_cert, the certificate that it is for.")
        return None
    certificate = settings.resolve(settings.server.tls_cert)
    key = settings.resolve(settings.server.tls_key) if settings.server.tls_key else None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        files = f"{certificate} and {key}" if key else str(certificate)
        raise ConfigError(
            f"TLS needs a certificate and its key, without a password, in PEM (server.tls_cert, server.tls_key); "
            f"{files} are not: {error}."
        ) from error
    return certificate, key


def _no_password() -> str:
    raise ValueError("the key has a password")  # or OpenSSL would ask for it in the terminal


def _is_loopback(host: str) -> bool:
    address = ip_address(host.partition("%")[0])
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (inner or address).is_loopback
