"""Measures tether beside its peers: one script a question, each with its figures and the bars they must keep."""

import sys

# As tether's main does: oslo.utils imports eventlet only to ask whether it has patched anything, and it warns.
sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]  # None makes the import fail
