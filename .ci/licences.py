"""The licences of what serving installs, from the packages' own metadata; status 1 for one not allowed."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "Apache-2.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "PSF-2.0",
    "MPL-2.0",
    "Unlicense",
    "0BSD",
    "Zlib",
    "CC0-1.0",
}
"""By their SPDX names. MPL-2.0 binds who changes the package's own files, which nobody does here."""
SPOKEN = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "osi approved :: apache software license": "Apache-2.0",
    "mit license": "MIT",
    "mit license (mit)": "MIT",
    "bsd license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "isc license (iscl)": "ISC",
}
HEAD = """# Licences of what serving installs

Written by `make licences` from the packages' metadata (`requirements.txt`, on Linux); a test holds it to the allowed
ones: {allowed}. This project is under Apache-2.0, as the models' files are ([weights.md](weights.md)).

| package | licence |
|---|---|
"""


def licence_of(package: str) -> str:
    """In SPDX's words where the package's can be read so, else as it says."""
    about = metadata(package)
    classified = [each.split(" :: ")[-1] for each in about.get_all("Classifier", []) if each.startswith("License ::")]
    said = (
        about.get("License-Expression") or "; ".join(classified) or (about.get("License") or "unknown").split("\n")[0]
    )
    return SPOKEN.get(said.strip().lower(), said.strip())


def names_of(licence: str) -> set[str]:
    return set(re.findall(r"[A-Za-z0-9][\w.-]*", re.sub(r"\b(AND|OR)\b|[()]", " ", licence)))


def allowed(licence: str) -> bool:
    """Of several that hold together each must be; of several to choose from one is enough."""
    return any(names_of(choice) <= ALLOWED for choice in licence.split(" OR "))


def packages() -> list[str]:
    """What requirements.txt installs here."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    chosen = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return sorted(each.name for each in chosen if each.marker is None or each.marker.evaluate())


def table() -> str:
    rows = "".join(f"| {name} | {licence_of(name)} |\n" for name in packages())
    return HEAD.format(allowed=", ".join(sorted(ALLOWED))) + rows


def main() -> int:
    try:
        refused = {name: licence_of(name) for name in packages() if not allowed(licence_of(name))}
        (ROOT / "docs" / "licences.md").write_text(table(), "utf-8")
    except PackageNotFoundError as error:
        sys.stderr.write(f"{error} is not installed: make test sets everything up\n")
        return 2
    for name, licence in refused.items():
        sys.stderr.write(f"{name}: {licence} is not among the allowed licences\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
