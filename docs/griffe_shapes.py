"""Show what our docstrings say after a colon as text, and the annotations as types.

``image : (H, W), any real dtype`` is, to a numpydoc parser, an image of the type "(H, W), any
real dtype". Types are in our signatures already; what follows the colon are shapes, units and
frames. This extension of griffe puts each where a reader expects it.
"""

from __future__ import annotations

from typing import Any

from griffe import Class, DocstringSectionKind, Extension, Function, Object


class Shapes(Extension):
    """Moves text out of the place of types, in parameters, attributes and returned values."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Correct the docstring of one module, class, function or attribute."""
        if obj.docstring is None:
            return
        for section in obj.docstring.parsed:
            if section.kind is DocstringSectionKind.parameters:
                types = _parameter_types(obj)
            elif section.kind is DocstringSectionKind.attributes:
                types = _attribute_types(obj)
            elif section.kind is DocstringSectionKind.returns:
                types = {"": getattr(obj, "returns", None)}
            else:
                continue
            for item in section.value:
                _move(item, types.get(item.name))


def _move(item: Any, annotation: Any) -> None:
    if item.annotation is None or item.annotation is annotation:
        return
    said = " ".join(part for part in (str(item.annotation), item.description) if part)
    item.annotation, item.description = annotation, said


def _parameter_types(obj: Object) -> dict[str, Any]:
    if not isinstance(obj, Function):
        return {}
    return {parameter.name: parameter.annotation for parameter in obj.parameters}


def _attribute_types(obj: Object) -> dict[str, Any]:
    if not isinstance(obj, Class):
        return {}
    return {name: attribute.annotation for name, attribute in obj.attributes.items()}
