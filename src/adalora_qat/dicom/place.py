"""Where an object stands: its study, series and number, by UIDs that are always the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adalora_qat import __version__
from adalora_qat.dicom.identity import Described, stable_uid
from adalora_qat.dicom.source import Source

# Kind of object → what is added to 9000 for the number of its series, behind those of modalities.
KINDS = {"SEG": 1, "SR": 2, "SC": 3, "GSPS": 4}


@dataclass(frozen=True)
class Place:
    """The UIDs and numbers of one object.

    Attributes
    ----------
    sop_uid : of the object.
    series_uid, series_number : of its series: one for each kind and series of the source.
    number : of the instance; that of the source's.
    """

    sop_uid: str
    series_uid: str
    series_number: int
    number: int

    @classmethod
    def of(cls, source: Source, model: Described, kind: str, *more: str) -> Place:
        """Return the place of a kind of object for an image and a model.

        Parameters
        ----------
        kind : of ``KINDS``.
        more : what else its content hangs on.
        """
        header = source.header
        maker = (__version__, model["sha256"], kind)
        series = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
        try:
            number = max(1, int(header.get("InstanceNumber") or 1))
        except (TypeError, ValueError):
            number = 1
        return cls(
            sop_uid=stable_uid("instance", source.sop_uid, *maker, *more),
            series_uid=stable_uid("series", *series, *maker),
            series_number=9000 + KINDS[kind],
            number=number,
        )

    def arguments(self) -> dict[str, Any]:
        """Return what constructors of objects want to know of it."""
        return {
            "series_instance_uid": self.series_uid,
            "series_number": self.series_number,
            "sop_instance_uid": self.sop_uid,
            "instance_number": self.number,
        }
