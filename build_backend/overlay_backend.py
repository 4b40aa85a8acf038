"""Build backend: setuptools', with an answer to editable installs, which cannot work for an overlay.

Our files must lie inside the installed folder of the upstream package `nnunetv2`; a link to the checkout would not put
them there. `pip install -e .` therefore makes an ordinary install and says so.
"""

import shutil
import warnings
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build the wheel from scratch: setuptools keeps `build/lib`, and with it files deleted from the checkout."""
    shutil.rmtree("build", ignore_errors=True)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build an ordinary wheel, with a warning."""
    warnings.warn(
        "An overlay cannot be installed in editable mode; this is an ordinary install. "
        "Run `pip install --no-deps .` again after every change.",
        stacklevel=1,
    )
    return build_wheel(wheel_directory, config_settings, metadata_directory)


get_requires_for_build_editable = build_meta.get_requires_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_wheel
