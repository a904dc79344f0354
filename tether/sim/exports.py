"""What the simulated host reads of Cinder's exports."""

from __future__ import annotations

from typing import Any

Book = dict[str, Any]


def export(cinder: Book, iqn: str) -> tuple[str, dict[str, Any]]:
    """Return the volume that is exported under this name, and its export; empty if there is none."""
    exports: dict[str, dict[str, Any]] = cinder.get("exports", {})
    return next(((volume_id, item) for volume_id, item in exports.items() if item["target_iqn"] == iqn), ("", {}))


def login_of(export: dict[str, Any]) -> tuple[object, object]:
    """Return the CHAP user and password of an export or of connection data."""
    return export.get("auth_username"), export.get("auth_password")
