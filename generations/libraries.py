"""Libraries that are imported when they are first used.

They are large, or absent where only a part of the project is wanted: training needs no Java, and
captions of people are scored without a GPU.
"""

from importlib import import_module
from typing import Any

from generations.errors import UserError


class Library:
    """Stands for a module until one of its attributes is asked for.

    Args:
        module: its name ("pycocoevalcap.bleu.bleu").
        package: what pip calls it; '': as the module's first part.
    """

    def __init__(self, module: str, package: str = ""):
        self._names = (module, package or module.split(".")[0])

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") and attribute not in ("__version__", "__file__", "__name__"):
            raise AttributeError(attribute)  # whoever looks a stranger over imports nothing
        return getattr(self._load(), attribute)

    def _load(self) -> Any:
        module, package = self._names
        try:
            return import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != module.split(".")[0]:
                raise
            raise UserError(
                f"this needs the package {package}, which is not installed: pip install {package}"
            ) from None


def library(module: str, package: str = "") -> Any:
    """A `Library`, for the type checker a module of any content."""
    return Library(module, package)
