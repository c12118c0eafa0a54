import pytest

pytest.register_assert_rewrite("tests.models.parity_tester", "tests.models.tester")
