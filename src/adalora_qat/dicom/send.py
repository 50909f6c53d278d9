"""Sending objects to another application entity by C-STORE."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pynetdicom import AE

from adalora_qat.errors import ConfigError, UserError

# Seconds until a node that says nothing is given up.
_PATIENCE = 30
# Statuses of C-STORE that mean that the object is kept (PS3.4 B.2.3).
_STORED = (0x0000, 0xB000, 0xB006, 0xB007)


class NotSentError(UserError):
    """The other node did not take an object; it may later."""


@dataclass(frozen=True)
class Destination:
    """Where to send: ``AET@host:port``."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Read ``AET@host:port``.

        Raises
        ------
        ConfigError
            If it is of another form.
        """
        title, at, place = text.partition("@")
        host, colon, port = place.rpartition(":")
        if not (title and at and host and colon and port.isdecimal() and len(title) <= 16):
            raise ConfigError(f"{text!r}: give AET@host:port, such as ORTHANC@10.0.0.5:4242")
        return cls(title, host, int(port))


def send(
    paths: Sequence[Path],
    target: Destination,
    own_title: str,
    context: ssl.SSLContext | None = None,
) -> None:
    """Send object files in their order; what the other node has already it stores again, once.

    Raises
    ------
    NotSentError
        If the other node is not there, breaks off, or refuses one.
    """
    datasets = [pydicom.dcmread(path) for path in paths]
    entity = AE(ae_title=own_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _PATIENCE
    entity.connection_timeout = _PATIENCE
    for each in datasets:
        entity.add_requested_context(each.SOPClassUID, each.file_meta.TransferSyntaxUID)
    tls = None if context is None else (context, target.host)
    association = entity.associate(target.host, target.port, ae_title=target.title, tls_args=tls)
    if not association.is_established:
        raise NotSentError(f"{target.title} does not accept an association")
    try:
        for each in datasets:
            status = association.send_c_store(each)
            if status.get("Status") not in _STORED:
                raise NotSentError(
                    f"{target.title} did not store {each.Modality} ({status.get('Status')})"
                )
    except (
        ValueError,
        RuntimeError,
    ) as error:  # it broke off, or takes no such objects
        raise NotSentError(f"{target.title} does not take the objects") from error
    finally:
        if association.is_established:
            association.release()
