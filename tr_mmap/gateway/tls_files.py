"""Looks at the files of TLS before anything listens, so that one that cannot be used is named with its option."""

from __future__ import annotations

import os
import ssl

from .errors import BadConfig
from .sections import ServerConfig

__all__ = ["check_tls_files"]


def check_tls_files(config: ServerConfig) -> None:
    """
    Raises:
        BadConfig: one of them is not there, or cannot be read; or they are no certificate and its key.
    """
    certificate, key = config.tls_certificate, config.tls_key
    if certificate is None or key is None:
        return
    for option, path in (("server.tls_certificate", certificate), ("server.tls_key", key)):
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise BadConfig(f"{option}: {path} cannot be read: {error.strerror}", key=option, path=path) from error
    try:
        # With a password, which is wrong if one is needed; else it would be asked for, on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # an error of ssl is one of the system
        why = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise BadConfig(
            f"server.tls_certificate: {certificate} and tls_key {key} are no certificate chain and its key, in PEM and "
            f"without a password: {why}",
            key="server.tls_certificate",
            path=certificate,
        ) from error
