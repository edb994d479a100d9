"""The command line's text of an error."""

from __future__ import annotations

# Libraries of this package's extras, and the extra.
EXTRAS: dict[str, str] = dict.fromkeys(("optax", "grain", "orbax", "tensorboardX", "matplotlib", "sklearn"), "train")
EXTRAS |= {"PIL": "images", "datasets": "datasets", "pyarrow": "datasets", "array_record": "datasets", "torch": "torch"}


def explain(error: Exception) -> str:
    """Returns the error's text: for a missing library how to install it, for a file its name first."""
    if isinstance(error, ModuleNotFoundError) and str(error).startswith("No module named"):
        library = (error.name or "").split(".")[0]
        if library in EXTRAS:
            return f"{library} is not installed: pip install 'vit-linen[{EXTRAS[library]}]'"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error).rstrip() or type(error).__name__
