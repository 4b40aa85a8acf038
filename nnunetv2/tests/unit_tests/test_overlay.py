"""The rules that keep an overlay sound: paths, layers, imports, and what a wheel holds."""

import ast
import csv
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
OVERLAY = [p for folder in ("nnunetv2", "dinov3") for p in sorted((ROOT / folder).rglob("*.py"))]
SOURCES = [p for p in OVERLAY if "tests" not in p.relative_to(ROOT).parts]
# Every layer, leftmost first; a module may import from its own layer and from those to the right.
LAYERS = ("nnunetv2.run", "nnunetv2.study", "nnunetv2.training", "nnunetv2.experiment", "nnunetv2.model", "dinov3")


def upstream_files() -> set[str]:
    record = distribution("nnunetv2").read_text("RECORD")
    return {row[0] for row in csv.reader(record.splitlines())}


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level}


def layer_of(module: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if module == layer or module.startswith(layer + ".")), None)


def test_no_file_of_ours_has_an_upstream_path():
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / "nnunetv2").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert ours and not ours & upstream_files()


def test_init_files_stand_in_our_own_folders_only():
    upstream_folders = {str(Path(f).parent) for f in upstream_files() if f.endswith("__init__.py")}
    for path in SOURCES:
        folder = path.parent
        relative = str(folder.relative_to(ROOT))
        assert (folder / "__init__.py").exists() == (relative not in upstream_folders), relative
    assert not list((ROOT / "nnunetv2" / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_to_the_right(path: Path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    own = layer_of(module)
    for imported in imported_modules(path):
        target = layer_of(imported)
        assert own is None or target is None or target >= own, f"{module} imports {imported}"
        if module.startswith("dinov3"):
            assert not imported.startswith("nnunetv2"), f"{module} imports {imported}"


def test_the_layer_rule_sees_imports():
    assert "nnunetv2.model.backbone" in imported_modules(ROOT / "nnunetv2/model/segmentation_model.py")
    assert layer_of("nnunetv2.run.arguments") == 0
    assert layer_of("nnunetv2.utilities.find_objects") is None


def test_no_print_in_library_code_but_in_commands_and_one_exception():
    calls = {
        (path.name, function.name)
        for path in SOURCES
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    commands = {("training_commands.py", "_refuse"), ("vit_info.py", "run_info_entry")}
    told = ("_tell_failures", "_tell_unfinished")
    commands |= {("study_command.py", f) for f in ("run_study_entry", "_run_on_slurm", "_print_table", *told)}
    commands |= {("held_out_arguments.py", "print_path"), ("run.py", "_refuse")}
    assert calls == {("segmentation_model.py", "print_trainable_parameters"), *commands}


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)


def test_the_command_and_the_schema_load_without_torch():
    code = (
        "import sys, nnunetv2.run.run_training_vit, nnunetv2.run.vit_info;"
        "import nnunetv2.training.nnUNetTrainer.vit_config as c;"
        "from nnunetv2.experiment.schema import load_config;"
        "load_config(c.ViTnnUNetConfig, 'upernet');"
        "print([m for m in ('torch', 'timm', 'transformers', 'peft') if m in sys.modules])"
    )
    result = run_python(code)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.integration  # seconds, in a process of its own
def test_importing_the_trainers_prints_nothing():
    # nnU-Net imports every module of the folder while it looks for a trainer
    result = run_python("import nnunetv2.training.nnUNetTrainer.nnUNetTrainer_mymodel")
    assert result.returncode == 0 and result.stdout == "", result.stderr


@pytest.mark.parametrize("config", sorted((ROOT / "nnunetv2").rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_number_in_a_config_is_read_as_text_by_pyyaml(config: Path):
    assert not re.search(r":\s*\d+e-?\d+\s*$", config.read_text(), flags=re.MULTILINE)


def copy_checkout(folder: Path) -> Path:
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def test_a_change_that_is_not_installed_is_noticed_in_a_checkout_that_was_built_in(tmp_path: Path):
    copy = copy_checkout(tmp_path / "copy")
    metadata = copy / "nnunet_vit.egg-info"
    metadata.mkdir()
    (metadata / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: nnunet-vit\nVersion: 0.1.0\n")
    (metadata / "SOURCES.txt").write_text("nnunetv2/model/lora.py\n")
    with (copy / "nnunetv2/model/lora.py").open("a") as file:
        file.write("# changed\n")
    command = [sys.executable, "-c", "import conftest; print(conftest.stale_files())"]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "['nnunetv2/model/lora.py']", result.stderr


def test_editable_install_becomes_an_ordinary_one(tmp_path: Path):
    code = (
        "import sys, warnings; sys.path.insert(0, 'build_backend'); import overlay_backend as b\n"
        f"with warnings.catch_warnings(record=True) as w: print(b.build_editable({str(tmp_path)!r}))\n"
        "assert any('editable' in str(x.message) for x in w), w"
    )
    copy = copy_checkout(tmp_path / "copy")  # a build leaves folders behind
    (copy / "build" / "lib" / "nnunetv2").mkdir(parents=True)
    (copy / "build" / "lib" / "nnunetv2" / "deleted_long_ago.py").touch()
    result = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    names = set(zipfile.ZipFile(tmp_path / result.stdout.split()[-1]).namelist())
    assert {"nnunetv2/model/backbone.py", "nnunetv2/configs/upernet.yaml", "dinov3/__init__.py"} <= names
    assert "nnunetv2/training/nnUNetTrainer/configs/m2f_default.yaml" in names
    assert not [n for n in names if "tests" in n or n == "nnunetv2/__init__.py" or "deleted_long_ago" in n]
