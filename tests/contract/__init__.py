"""One suite per adapter, run on the embedded part and on the real one."""

import pytest

# The suites are imported, not collected: without this their failed asserts would say nothing.
pytest.register_assert_rewrite("tests.contract.cinder_contract")
