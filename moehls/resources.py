"""Where the packaged folders lie: `templates`, `tb` and `models`, in a source tree and in an installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from moehls.errors import MoehlsError


def resource(folder: Literal["templates", "tb", "models"]) -> Path:
    """The packaged folder.

    A wheel holds it in `moehls/_data`, a source tree beside the package.

    Raises:
        MoehlsError: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for place in (package / "_data" / folder, package.parent / folder):
        if place.is_dir():
            return place
    raise MoehlsError(f"the installation lacks its {folder}/ folder; install moehls again")
