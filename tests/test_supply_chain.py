"""What serving installs: under licences that are allowed, and by hashes that say which files."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest
from packaging.requirements import Requirement

from support import ROOT

LICENCES: dict[str, Any] = runpy.run_path(str(ROOT / ".ci" / "licences.py"))


def test_every_package_that_serving_installs_is_under_an_allowed_licence() -> None:
    packages = LICENCES["packages"]()
    assert len(packages) >= 30
    assert {
        name: licence for name in packages if not LICENCES["allowed"](licence := LICENCES["licence_of"](name))
    } == {}


def test_the_published_list_is_the_one_that_is_made() -> None:
    assert (ROOT / "docs" / "licences.md").read_text("utf-8") == LICENCES["table"]()


@pytest.mark.parametrize(
    ("licence", "fine"),
    [("MIT", True), ("MIT AND Apache-2.0", True), ("GPL-3.0-only OR MIT", True), ("MIT AND GPL-3.0-only", False),
     ("AGPL-3.0", False), ("unknown", False), ("LicenseRef-Proprietary", False)],
)  # fmt: skip
def test_a_licence_must_be_on_the_list(licence: str, fine: bool) -> None:
    assert LICENCES["allowed"](licence) is fine


def test_the_hashes_are_of_the_versions_that_are_pinned() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert "://" not in lock  # hashes hold whoever carries the files
    entries = [entry for entry in lock.replace("\\\n", " ").splitlines() if entry.strip()]
    hashes = {entry: re.findall(r"--hash=sha256:[0-9a-f]{64}(?= |$)", entry) for entry in entries}
    assert all(hashes.values())
    pinned = {str(Requirement(entry.partition(" --hash=")[0].strip())) for entry in entries}
    plain = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert pinned == {str(Requirement(line)) for line in plain if line}
