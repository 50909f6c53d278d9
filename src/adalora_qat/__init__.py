"""Compact, trustworthy medical segmentation from Segment Anything models.

In Python, on the base install, the packaged model segments a radiograph in three lines:

>>> import adalora_qat as aq
>>> model = aq.load()
>>> result = model("radiograph.png")

The names below are imported when they are first used, so that importing the package costs
nothing.
"""

import os as _os

# Unless told not to before it is imported, ONNX Runtime writes an identifier of the machine and a
# store of telemetry into the home folder (seen with 1.32). A value of the user's own stays.
_os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Known to type checkers by this name; typing itself would take nine tenths of the import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from adalora_qat.chest.caution import Caution
    from adalora_qat.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        ExportError,
        TrainingError,
        UserError,
    )
    from adalora_qat.runtime.model import Model, load
    from adalora_qat.runtime.result import Failure, Result

__version__ = "0.1.0"

__all__ = [
    "Caution",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "Failure",
    "Model",
    "Result",
    "TrainingError",
    "UserError",
    "__version__",
    "load",
]

_MODULES = {
    "Caution": "runtime.input_check",
    "Failure": "runtime.result",
    "Model": "runtime.model",
    "Result": "runtime.result",
    "load": "runtime.model",
    **{name: "errors" for name in __all__ if name.endswith("Error")},
}

if not TYPE_CHECKING:  # else no misspelt name would be noticed

    def __getattr__(name: str) -> object:
        """Import a public name on its first use (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
