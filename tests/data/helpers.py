"""What the tests of several tasks share."""

import re

import pytest


def write(path, content):
    """Writes text or bytes unchanged; returns the path as a string, as tasks take it."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def raises(error, *parts):
    """Expects an error whose message contains all parts, in this order."""
    return pytest.raises(error, match=r"[\s\S]*".join(re.escape(str(part)) for part in parts))
