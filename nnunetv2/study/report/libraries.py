"""The libraries that a report needs and a training does not."""

from importlib.util import find_spec

from dinov3.errors import ExperimentError

# as they are imported -> as they are installed
LIBRARIES = {
    "pandas": "pandas",
    "matplotlib": "matplotlib",
    "skimage": "scikit-image",
    "statsmodels": "statsmodels",
    "scikit_posthocs": "scikit-posthocs",
    "jinja2": "jinja2",
}


def check_libraries() -> None:
    """Check that all libraries of a report are installed, before minutes are spent on the cases.

    Raises:
        ExperimentError: names those that are missing, and the command that installs them.
    """
    missing = [name for module, name in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise ExperimentError(f'a report needs {", ".join(missing)}: pip install ".[study]"')
