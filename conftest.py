"""For all tests: the installed overlay is the checkout's, the folders of nnU-Net, and the real data sets."""

import filecmp
import os
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
SHARED = ROOT.parent / "shared"
REAL_DATA = SHARED / "data" / "nnUNet_raw"
GOLDEN = SHARED / "golden"

# Before NumPy and torch are loaded, here and in every command that a test starts.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are tiny: threads would wait for each other
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # and the workers beside them need the cores
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ["nnUNet_def_n_proc"] = "1"  # each process that nnU-Net starts loads torch, for a handful of cases


def overlay_files() -> list[Path]:
    """Paths, relative to the checkout, of the files that an install must bring."""
    files = [path for folder in ("nnunetv2", "dinov3") for path in (ROOT / folder).rglob("*")]
    relative = [path.relative_to(ROOT) for path in files if path.suffix in (".py", ".yaml")]
    return sorted(path for path in relative if "tests" not in path.parts)


def stale_files() -> list[str]:
    """Files of the checkout that are not installed, or installed in another version, and the other way round."""
    # not the metadata that a build leaves in the checkout, which `python -m pytest` would find first
    site_packages = sysconfig.get_path("purelib")
    installed = next(iter(distributions(name="nnunet-vit", path=[site_packages])), None)
    if installed is None:
        return ["(nothing is installed)"]
    ours = overlay_files()
    listed = {Path(str(path)) for path in installed.files or [] if path.parts[0] in ("nnunetv2", "dinov3")}
    left_over = [path for path in listed if path.suffix in (".py", ".yaml") and path not in ours]
    changed = [path for path in ours if not _is_same(ROOT / path, Path(str(installed.locate_file(path))))]
    return [str(path) for path in (*changed, *left_over)]


def _is_same(ours: Path, installed: Path) -> bool:
    return installed.is_file() and filecmp.cmp(ours, installed, shallow=False)


def pytest_sessionstart() -> None:
    stale = stale_files()
    if stale:
        pytest.exit(f"the installed files differ from the checkout ({', '.join(stale[:5])}): run `pip install .`", 3)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The nnU-Net raw folder with the real data sets."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data sets not found in {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference numbers."""
    if not GOLDEN.is_dir():
        pytest.skip(f"reference numbers not found in {GOLDEN}")
    return GOLDEN
