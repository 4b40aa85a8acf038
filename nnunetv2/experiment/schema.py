"""The configurations of nnU-Net's experiments: `dinov3.configuration` reads and checks them.

Nothing heavy is imported here: a wrong configuration is found before torch is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nnunetv2
from dinov3.configuration import schema as schemas
from dinov3.configuration.yaml_files import ConfigFiles

PACKAGE = Path(nnunetv2.__path__[0])
CONFIG_FOLDERS = (PACKAGE / "configs", PACKAGE / "training" / "nnUNetTrainer" / "configs")
FILES = ConfigFiles(CONFIG_FOLDERS, keys="model, lora and train", example="train.num_epochs=50")

packaged_configs, find_config, config_source, read_values = FILES.names, FILES.find, FILES.source, FILES.read


def build(schema: type, values: dict[str, Any], source: str) -> Any:
    """Make a configuration object of the values, after checking all of them.

    Args:
        schema: the dataclass of the configuration, or one that names another for these values (`schema_for`). Its
            method `stored()` gives the configuration that goes into the plans, whose method `problems()` may yield
            further messages.
        values: nested dictionary.
        source: what to call the configuration in the message.

    Returns:
        The object that goes into the plans, complete with defaults.

    Raises:
        ExperimentError: names every unknown key, wrong type and impossible value, one in a line.
    """
    return schemas.build(schema.schema_for(values), values, source, lambda config: config.stored())


def load_config(schema: type, name_or_path: str, overrides: Sequence[str] = ()) -> Any:
    """Read, merge and check a configuration (see `find_config`, `read_values`, `build`)."""
    return build(schema, read_values(find_config(name_or_path), overrides), name_or_path)
