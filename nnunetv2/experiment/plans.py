"""The plans file of an experiment: its name, reading, comparing and writing it in one piece."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dinov3.configuration.schema import Schema, check, describe, read, refuse
from dinov3.files import replace_when_complete
from nnunetv2.experiment.decoder_options import backbone_keywords, decoder_keywords
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.model.option_checks import AUTO

# The resolved experiment configuration, within a configuration of the plans. The options of the decoder are not in it:
# the keywords of the network hold them.
EXPERIMENT_KEY = "vit"
CONFIG_PATH_KEY = "vit_config_path"  # where it was read from, beside the configurations; for people, nothing reads it
# Keys that came later, and the value with which experiments of plans without them were trained
LATER_KEYS = {
    **{"auxiliary_losses": True, "num_training_cases": None, "training_groups": None},
    **{"schedule_interval": "epoch", "poly_exponent": 0.9, "warmup_fraction": None},
    **{"backbone_warmup_epochs": None, "backbone_warmup_fraction": None},
    "decoder_checkpoint_path": "",
}
MAX_DIFFERENCES = 10
MAX_NAME_LENGTH = 100
NAME = re.compile(r"[^\W_]([\w.+= -]*[^\W_])?")


def check_name(name: str) -> None:
    """Check the name of an experiment, which becomes part of file and folder names.

    nnU-Net splits folder names at `__`, and puts one before and one behind the name of the plans.

    Raises:
        ExperimentError: the name would break that.
    """
    if not NAME.fullmatch(name) or "__" in name or len(name) > MAX_NAME_LENGTH:
        raise ExperimentError(
            f"experiment name {name!r} is not allowed: letters, digits and single '_', '-', '.', '+', '=' or spaces "
            f"between them, at most {MAX_NAME_LENGTH} characters"
        )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ExperimentError: it is none, for example because its writing was interrupted.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path} is not a valid JSON file: {error}") from error


def read_plans(folder: Path, plans_name: str) -> dict[str, Any]:
    """Read a plans file of a preprocessed data set.

    Raises:
        ExperimentError: there is none of this name, or it is no JSON; the message lists those that exist.
    """
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        existing = sorted(p.stem for p in folder.glob("*.json") if "lans" in p.stem)
        raise ExperimentError(f"plans {plans_name!r} not found in {folder}; existing: {', '.join(existing) or 'none'}")
    plans = read_json(path)
    if not isinstance(plans, dict) or not {"configurations", "plans_name"} <= plans.keys():
        raise ExperimentError(f"{path} does not hold plans: it has no 'configurations' or no 'plans_name'")
    name, configurations = plans["plans_name"], plans["configurations"]
    if not isinstance(name, str) or not re.fullmatch(r"[^/]+", name):
        raise ExperimentError(f"{path}: plans_name must be a name without '/', found {name!r}")
    if not isinstance(configurations, dict) or not all(isinstance(c, dict) for c in configurations.values()):
        raise ExperimentError(f"{path}: configurations must be a mapping of names to mappings")
    return plans


def configurations_2d(plans: dict[str, Any]) -> list[str]:
    """Names of the 2D configurations of the plans."""
    sizes = {name: resolve(plans, name).get("patch_size") for name in plans["configurations"]}
    return [name for name, size in sizes.items() if isinstance(size, (list, tuple)) and len(size) == 2]


def resolve(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return a configuration of the plans with all that it inherits.

    Raises:
        ExperimentError: it inherits from one that does not exist, or from itself.
    """
    chain = [configuration]
    while parent := plans["configurations"][chain[-1]].get("inherits_from"):
        if parent in chain or parent not in plans["configurations"]:
            raise ExperimentError(
                f"in the plans {plans['plans_name']!r} configuration {chain[-1]!r} inherits from {parent!r}, which "
                f"{'inherits from it' if parent in chain else 'does not exist'}"
            )
        chain.append(parent)
    merged: dict[str, Any] = {}
    for name in reversed(chain):
        merged.update(plans["configurations"][name])
    merged.pop("inherits_from", None)
    return merged


def as_stored(config: Any) -> dict[str, Any]:
    """A configuration object as it stands in the plans, which must not depend on where a command is run."""
    stored = asdict(config)
    stored["train"]["training_groups"] = config.train.read_training_groups()
    if config.model is None:
        return stored
    for key in config.model.decoder_keys(config.model.decoder):
        del stored["model"][key]
    for key in ("checkpoint_path", "decoder_checkpoint_path"):
        if stored["model"].get(key):
            path = Path(stored["model"][key]).expanduser()
            # not the file itself: what an index of shards links to, as in the hub's cache, lies in another folder
            stored["model"][key] = str(path.parent.resolve() / path.name)
    return stored


def restore(schema: type[Schema], derived: dict[str, Any]) -> Schema:
    """Make the configuration object of an experiment again; files that it was derived from may be gone.

    Args:
        schema: the dataclass of the configuration, in the form that goes into plans, or one that names another for
            these plans (`schema_for`).
        derived: a configuration of derived plans.

    Raises:
        ExperimentError: the plans were changed by hand, to what no configuration can be.
    """
    values = derived[EXPERIMENT_KEY]
    schema = schema.schema_for(values)
    if schema().model is not None:
        keywords = derived["architecture"]["arch_kwargs"]
        options = {key: value for key, value in keywords.items() if key not in backbone_keywords()}
        values = {**values, "model": {**values["model"], **schema().model.decoder_keys(options)}}
    refuse((describe(error, schema) for error in check(schema, values)), "the experiment in the plans")
    return read(schema, values)


def differences_from(
    plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], config: Any
) -> Iterator[str]:
    """Yield in what a configuration object differs from the one that the plans of an experiment were derived from.

    Args:
        plans: the plans of the experiment.
        configuration: a configuration of these plans.
        dataset_json: the data set's `dataset.json`.
        config: the checked configuration object.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # loads torch

    derived, asked = resolve(plans, configuration), as_stored(config)
    if asked["train"].get("mask_annealing", "none") is None:  # the schedule that was decided on when they were derived
        asked["train"]["mask_annealing"] = derived[EXPERIMENT_KEY]["train"].get("mask_annealing")
    yield from differences_between(derived[EXPERIMENT_KEY], asked)
    if config.model is None:
        return
    regions = PlansManager(plans).get_label_manager(dataset_json).has_regions
    keywords = derived["architecture"]["arch_kwargs"]
    # a decoder that takes widths from the plans has stored them as they are called there
    options = decoder_keywords(config.model, derived["batch_size"], regions, keywords.get("features_per_stage"))
    options |= {key: keywords.get(key) for key, value in options.items() if value == AUTO}  # it was decided on then
    yield from differences_between({key: keywords.get(key) for key in options}, options, "model.decoder")


def check_configuration(plans: dict[str, Any], configuration: str) -> None:
    """Check that the plans hold a configuration, and that it is a 2D one.

    Raises:
        ExperimentError: names the 2D configurations that exist.
    """
    allowed = configurations_2d(plans)
    if configuration not in allowed:
        found = "is not a 2D configuration" if configuration in plans["configurations"] else "does not exist"
        raise ExperimentError(
            f"configuration {configuration!r} {found} in the plans {plans['plans_name']!r}; ViTs work on 2D images, "
            f"allowed: {', '.join(allowed) or 'none (plan with -c 2d first)'}"
        )


def check_experiment(plans: dict[str, Any], configuration: str) -> None:
    """Check that a configuration of the plans has what an experiment writes into it.

    Raises:
        ExperimentError: it is not an experiment's, or was damaged by hand.
    """
    content = resolve(plans, configuration)
    experiment, architecture = content.get(EXPERIMENT_KEY), content.get("architecture")
    if experiment is None:
        raise ExperimentError(f"the plans {plans['plans_name']!r} are not those of an experiment")
    has_network = isinstance(architecture, dict) and isinstance(architecture.get("arch_kwargs"), dict)
    if not has_network or not isinstance(experiment, dict) or not isinstance(experiment.get("trainer"), str):
        raise ExperimentError(
            f"the plans {plans['plans_name']!r} were changed by hand: configuration {configuration!r} must have "
            f"{EXPERIMENT_KEY}.trainer and architecture.arch_kwargs"
        )


def check_same(stored: dict[str, Any], experiment: dict[str, Any], path: Path) -> None:
    """Check that plans read from `path` are those of an experiment.

    Raises:
        ExperimentError: they are another's; the message shows the difference.
    """
    differences = list(differences_between(stored, json.loads(json.dumps(experiment))))
    if differences:
        raise ExperimentError(
            f"{path} holds another experiment (there → now):\n{listed(differences)}\n"
            f"the plans name {experiment['plans_name']!r} is taken: choose another with --name"
        )


def check_results(folder: Path, experiment: dict[str, Any]) -> None:
    """Check that a results folder, if there is one, belongs to an experiment.

    Raises:
        ExperimentError: its `plans.json` holds another experiment; the message shows the difference.
    """
    try:
        stored = read_plans(folder, "plans")
    except ExperimentError:
        return  # nnU-Net writes the file in place at every start of a training: a kill may have left half of it
    check_same(stored, experiment, folder / "plans.json")


def listed(differences: list[str]) -> str:
    """The first differences, one in a line."""
    more = f"\n  … and {len(differences) - MAX_DIFFERENCES} more" if len(differences) > MAX_DIFFERENCES else ""
    return "\n".join(f"  {line}" for line in differences[:MAX_DIFFERENCES]) + more


def write_new_plans(folder: Path, plans: dict[str, Any]) -> Path:
    """Write derived plans, unless the same are there already; a file that is there is not changed.

    Returns:
        The path of the plans file.

    Raises:
        ExperimentError: a plans file of this name holds another experiment, or it cannot be written.
    """
    path = folder / f"{plans['plans_name']}.json"
    try:
        if not path.is_file():
            _write_first(path, plans)
            return path
    except FileExistsError:
        pass  # another process has written them in between
    except OSError as error:
        raise ExperimentError(f"cannot write the plans {path}: {error.strerror}") from error
    check_same(read_plans(folder, path.stem), plans, path)
    return path


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one piece."""
    with replace_when_complete(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4), encoding="utf-8")


def _write_first(path: Path, content: Any) -> None:
    """Write a JSON file in one piece.

    Raises:
        FileExistsError: there is one by now. Without hard links, as on some file systems, it is replaced.
    """
    with replace_when_complete(path) as temporary:
        write_json(temporary, content)
        try:
            os.link(temporary, path)  # unlike a move, this never replaces a file
        except FileExistsError:
            raise
        except OSError:
            return


def differences_between(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Yield `key: old → new` for every leaf of two nested dictionaries that is not the same.

    Where an experiment's configuration was read from makes no difference.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted((old.keys() | new.keys()) - {CONFIG_PATH_KEY}):
            absent = LATER_KEYS.get(key, "(absent)")
            yield from differences_between(old.get(key, absent), new.get(key, absent), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name}: {old!r} → {new!r}"
