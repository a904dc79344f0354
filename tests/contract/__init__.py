"""One suite per adapter, run on the embedded part and on the real one."""

import pytest

# The suites are imported, not collected: without this their failed asserts would say nothing.
for _part in ("attachments", "contract", "extend", "faults", "legacy", "words"):
    pytest.register_assert_rewrite(f"tests.contract.cinder_{_part}")
