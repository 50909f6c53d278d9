"""Who made a result object, under which UIDs, and for what use.

UIDs are made of names (RFC 4122, version 5) under the root 2.25 (PS3.5 B.2): the same source,
model, version and kind of object give the same UID on every machine, so that an archive stores
what is sent twice once.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from highdicom import AlgorithmIdentificationSequence, ContributingEquipment
from pydicom.sr.codedict import codes

from adalora_qat import __version__

NAME = "adalora-qat"
MANUFACTURER = "The adalora-qat authors"
NOT_FOR_CLINICAL_USE = "NOT FOR CLINICAL USE"
# The longest value of VR LO.
_LONGEST = 64

Described = Mapping[str, str]
"""A model as results describe it (``Result.model``)."""


def stable_uid(*parts: str) -> str:
    """Return the UID of these words, always the same for the same words."""
    name = "\0".join((NAME, *parts))
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def algorithm_name(model: Described) -> str:
    """Return what the algorithm is called: the package and the file of its model."""
    return f"{NAME} {model['file']}"[:_LONGEST]


def algorithm(model: Described) -> AlgorithmIdentificationSequence:
    """Return the identification of the algorithm that segmented."""
    return AlgorithmIdentificationSequence(
        name=algorithm_name(model),
        family=codes.DCM.ArtificialIntelligence,
        version=__version__,
        source=MANUFACTURER,
        parameters={"model_sha256": model["sha256"]},
    )


def equipment(model: Described) -> dict[str, Any]:
    """Return what constructors of objects want to know of the equipment.

    The model stands for the serial number: it is what tells two installations apart.
    """
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": NAME,
        "software_versions": [__version__, model["sha256"]],
        "device_serial_number": model["sha256"],
    }


def contributing(model: Described) -> list[ContributingEquipment]:
    """Return this software as equipment that processed the source."""
    return [
        ContributingEquipment(
            MANUFACTURER,
            codes.DCM.ProcessingEquipment,
            manufacturer_model_name=NAME,
            software_versions=[__version__, model["sha256"]],
            contribution_description=f"Automatic segmentation, {NOT_FOR_CLINICAL_USE}",
        )
    ]


def described(what: str) -> str:
    """Return a series description that says what the series is, and what it is not for."""
    return f"{what}, {NOT_FOR_CLINICAL_USE}"[:_LONGEST]
