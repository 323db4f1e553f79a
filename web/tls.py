"""The server's certificate: read when it starts, reread when it is told to, without touching a connection.

TLS 1.2 and newer, HTTP/1.1 only. With ``ca_certs`` clients must show a certificate that one of them has signed. The password of an
encrypted key comes from the environment and never from the command line, which every user of the machine can read.
"""

import ssl

from callboard.runtime.core.errors import ConfigError

__all__ = ["Certificate"]


class Certificate:
    """Certificate and key, in the ``context`` that new connections use. Raises ConfigError where they cannot be used."""

    def __init__(self, certfile: str, keyfile: str, *, ca_certs: str | None = None, password: str = "") -> None:
        self._certfile = certfile
        self._keyfile = keyfile
        self._password = password
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._load(self.context)
        if ca_certs is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            try:
                self.context.load_verify_locations(ca_certs)
            except OSError as error:
                raise ConfigError(f"the certificates in {ca_certs!r} cannot be used: {_reason(error)}") from error

    def reload(self) -> None:
        """Give new connections what the files hold now. Raises ConfigError, and then nothing has changed."""
        # Elsewhere first: half of a pair that does not fit would stay.
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> None:
        # OpenSSL does not say which file is not there.
        for what, path in (("certificate", self._certfile), ("key", self._keyfile)):
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise ConfigError(f"the {what} {path!r} cannot be read: {error.strerror}") from error
        try:
            # A text in any case: without one, OpenSSL would ask on the terminal.
            context.load_cert_chain(self._certfile, self._keyfile, password=lambda: self._password)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the certificate {self._certfile!r} and the key {self._keyfile!r} cannot be used: {_reason(error)}"
            ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "they do not belong together"
        if error.reason is None or "DECRYPT" in error.reason or "PASSWORD" in error.reason:
            return (
                "is the key encrypted? Then give its password as CALLBOARD_KEYFILE_PASSWORD, else they are no PEM files"
            )
        return error.reason.replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
