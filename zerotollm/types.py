"""Types without a name in Python: JSON objects and pytrees."""

from typing import Any

Json = dict[str, Any]
"""A JSON object."""
PyTree = Any
"""A pytree of arrays: nested dicts, tuples and named tuples, for which JAX has no type."""
