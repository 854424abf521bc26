"""Which address an assistant may have: one that an operator wrote down, and that nobody on the way can read along."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def check_address(url: str) -> None:
    """Check the base URL of an assistant, such as ``https://models.example.com/v1`` or ``http://127.0.0.1:8100/v1``.

    Raises:
        ValueError: it is no address of HTTPS, nor one of this machine; or it has a name, a password, a query or a
            fragment in it. The message does not repeat the address, which may hold a secret.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError("it must be a URL such as https://HOST/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("it must have no user, password, query or fragment: a key goes into an environment variable")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_this_machine(host)):
        raise ValueError("it must begin with https://, or with http:// for a loopback address such as 127.0.0.1")


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
