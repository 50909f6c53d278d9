"""How the server is told to behave: addresses, limits, who may ask."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from adalora_qat.errors import ConfigError

MEGABYTE = 1_000_000
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Settings:
    """What the server allows; the defaults suit one workplace with two cores.

    Attributes
    ----------
    host, port : where it listens; a host that is not loopback needs a token.
    token : what requests must carry as ``Authorization: Bearer``; None for no such need.
    origins : other web pages that may ask, such as ``https://viewer.example``.
    max_bytes : of one request's body.
    max_pixels : of one image, by its header, before it is decoded.
    max_boxes : of one request.
    seconds : after which a request is given up with 504.
    body_seconds : in which a body must have arrived.
    waiting : requests that may wait for a worker; further ones are told 503.
    workers : requests that are worked on at once.
    held_bytes : of bodies, all requests together.
    sessions : images kept open; the one used longest ago makes room.
    session_seconds : that an image is kept without being asked.
    connections : open at once.

    Raises
    ------
    ConfigError
        If a limit is not positive, the token is short, or an origin is not one.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    origins: tuple[str, ...] = ()
    max_bytes: int = 64 * MEGABYTE
    max_pixels: int = 40_000_000
    max_boxes: int = 64
    seconds: float = 60.0
    body_seconds: float = 30.0
    waiting: int = 16
    workers: int = 2
    held_bytes: int = 512 * MEGABYTE
    sessions: int = 32
    session_seconds: float = 900.0
    connections: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and name != "port" and value <= 0:
                raise ConfigError(f"{name}={value}: give a positive number")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port {self.port}: give one from 1 to 65535, or 0 for any free one")
        if self.token is not None and (
            len(self.token) < SHORTEST_TOKEN or not self.token.isascii() or " " in self.token
        ):
            raise ConfigError(
                f"the token must be at least {SHORTEST_TOKEN} ASCII characters without blanks"
            )
        for origin in self.origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest:
                raise ConfigError(f"origin {origin!r}: give one such as https://viewer.example")
        if self.token is None and not self.is_local:
            raise ConfigError(
                f"{self.host} can be reached from other machines, so a token is needed: give "
                "--token-file, or leave --host out"
            )

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
