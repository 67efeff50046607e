"""Where ONNX Runtime is: an ordinary dependency of this package, found without importing it."""

from __future__ import annotations

import importlib.util

from . import _native


def find() -> None:
    """Tells the native part where the installed package ``onnxruntime`` is (``onnxruntime-gpu`` has the same name)."""
    try:
        spec = importlib.util.find_spec("onnxruntime")
    except (ImportError, ValueError):  # something of that name is half imported
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    _native.use_onnxruntime(folders[0] if folders else None)
