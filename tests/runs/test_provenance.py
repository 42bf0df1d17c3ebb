"""The fingerprint of the code."""

from pathlib import Path

import dvp_jax
from dvp_jax.runs import provenance


def test_the_code_fingerprint_changes_with_any_module_of_the_package(tmp_path, monkeypatch):
    assert Path(dvp_jax.__file__).parent == provenance.PACKAGE_FOLDER
    monkeypatch.setattr(provenance, "PACKAGE_FOLDER", tmp_path)
    module = tmp_path / "exits" / "policy.py"
    module.parent.mkdir()
    fingerprints = set()
    for text in ("a = 1\n", "a = 2\n"):
        module.write_text(text)
        fingerprints.add(provenance.code_fingerprint.__wrapped__())
    module.rename(tmp_path / "policy.py")
    fingerprints.add(provenance.code_fingerprint.__wrapped__())
    assert len(fingerprints) == 3
    (tmp_path / "page.html").write_text("no code")
    assert provenance.code_fingerprint.__wrapped__() in fingerprints
