"""Shows docstrings to mkdocstrings as it expects them, and the fields of TrainConfig as a list."""

import ast
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Changes docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename `Example:`, which is no section for mkdocstrings, to `Examples:`."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """List the options of a class with their help texts, as attributes."""
        options = [(name, _help(attribute)) for name, attribute in cls.attributes.items()]
        lines = [f"  {name}: {text}" for name, text in options if text]
        if lines and cls.docstring:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)


def _help(attribute: griffe.Attribute) -> str:
    """Return the help text in `name: type = option(default, group, help, ...)`; or nothing."""
    value = attribute.value
    if not (isinstance(value, griffe.ExprCall) and str(value.function).lstrip("_") == "option"):
        return ""
    default, _, text = [str(argument) for argument in value.arguments[:3]]
    return f"{ast.literal_eval(text)} (default {default})"
