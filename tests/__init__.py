import pytest

pytest.register_assert_rewrite("tests.support")  # what its asserts compare is shown as in a test
