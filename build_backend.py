"""PEP 517 backend: setuptools, with the torch that is already installed where there is one.

pip's build isolation hides site-packages but leaves sysconfig pointing at them; without this,
every `pip install .` would download a second torch of several gigabytes only to read its headers.
"""

import importlib.util
import os
import sys
import sysconfig

from setuptools import build_meta as _setuptools
from setuptools import setup
from setuptools.build_meta import *  # noqa: F403


def _find_torch() -> bool:
    if importlib.util.find_spec("torch"):
        return True
    for key in ("purelib", "platlib"):
        folder = sysconfig.get_path(key)
        if os.path.isdir(os.path.join(folder, "torch", "include", "torch", "csrc", "stable")):
            sys.path.append(folder)  # after the isolated packages, so that their setuptools and ninja win
            return True
    return False


def _requires(config_settings=None):
    return ["ninja", "pybind11>=2.12"] + ([] if _find_torch() else ["torch>=2.10"])


get_requires_for_build_wheel = get_requires_for_build_editable = _requires


def get_requires_for_build_sdist(config_settings=None):
    """Return nothing: a source archive needs no compiler and no torch."""
    return []


def build_sdist(sdist_directory, config_settings=None):
    """Pack what pyproject.toml and MANIFEST.in name; setup.py, which needs torch, is not run."""
    arguments = ["-q", "sdist", "--formats=gztar", "--dist-dir", sdist_directory]
    (made,) = setup(script_name="setup.py", script_args=arguments).dist_files
    return os.path.basename(made[-1])


def _with_torch(name):
    def hook(*args, **kwargs):
        _find_torch()
        return getattr(_setuptools, name)(*args, **kwargs)

    return hook


build_wheel = _with_torch("build_wheel")
build_editable = _with_torch("build_editable")
prepare_metadata_for_build_wheel = _with_torch("prepare_metadata_for_build_wheel")
prepare_metadata_for_build_editable = _with_torch("prepare_metadata_for_build_editable")
