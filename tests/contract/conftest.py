"""The suites that live in the test kit explain their failures as tests here do."""

import pytest

pytest.register_assert_rewrite("deployd_core.testing.gates")
