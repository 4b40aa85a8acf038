"""What a decoder module offers: its factory, and the options that the signature of the factory names."""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from types import ModuleType
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

import nnunetv2.model
from dinov3.configuration.schema import check, describe, plain, refuse
from dinov3.errors import in_one_line
from nnunetv2.experiment.errors import ExperimentError, not_to_be_built

MASK2FORMER = "nnunetv2.model.model_m2f"  # its options are no keys of `model.decoder`, but of `model` itself
EOMT = "nnunetv2.model.model_eomt"
PMT = "nnunetv2.model.model_pmt"
# Networks that return queries, and so have a trainer and a schema of their own: module to packaged configuration
MASK_CLASSIFICATION = {MASK2FORMER: "m2f", EOMT: "eomt", PMT: "pmt"}
FACTORY = "create_segmentation_model"
# What a module may have beside its factory, `(options, batch_size, regions) → options`, to decide on what is automatic.
# If it has a parameter `features_per_stage` it gets the widths of the U-Net of the plans as well.
RESOLVER = "resolve_options"
PLAIN_TYPES = (bool, int, float, str, list, tuple, dict, type(None))  # what plans can hold


def packaged_decoders() -> list[str]:
    """Dotted names of the modules of this package that `model.model_path` can name."""
    modules = sorted(f"nnunetv2.model.{module.name}" for module in pkgutil.iter_modules(nnunetv2.model.__path__))
    return [name for name in modules if name != MASK2FORMER and hasattr(importlib.import_module(name), FACTORY)]


def load_decoder(model_path: str) -> ModuleType:
    """Import a decoder module, and torch with it.

    Raises:
        ExperimentError: it cannot be imported, or has no factory.
    """
    try:
        module = importlib.import_module(model_path)
    except Exception as error:  # whatever a module of the user's own raises
        raise ExperimentError(f"model.model_path: {model_path!r} cannot be imported: {in_one_line(error)}") from error
    if not callable(getattr(module, FACTORY, None)):
        raise ExperimentError(f"model.model_path: module {model_path!r} has no function {FACTORY}")
    return module


def backbone_keywords() -> set[str]:
    """The keywords that every factory hands on to `ViTSegmentationModel`."""
    from nnunetv2.model.segmentation_model import ViTSegmentationModel

    return set(inspect.signature(ViTSegmentationModel).parameters)


def read_options(model_path: str) -> type:
    """Return a dataclass of the options of a decoder: the keywords of its factory that are not the backbone's.

    Where a factory takes any keyword (`**options`), it hands them on: a class to its bases, a function to the class
    that its return annotation names. Of others it cannot be known, and the dataclass takes any key.

    Raises:
        ExperimentError: see `load_decoder`.
    """
    found: dict[str, inspect.Parameter] = {}
    takes_any = True
    for called in _called_in_turn(getattr(load_decoder(model_path), FACTORY)):
        parameters = _signature(called).parameters
        found = {**parameters, **found}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if not takes_any:
            break
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    options = {k: p for k, p in found.items() if p.kind in named and k not in backbone_keywords()}
    config = ConfigDict(extra="allow" if takes_any else "forbid", allow_inf_nan=False)
    return make_dataclass(
        "DecoderOptions", map(_field_of, options.values()), kw_only=True, namespace={"__pydantic_config__": config}
    )


def _called_in_turn(factory: Callable[..., Any]) -> Sequence[Callable[..., Any]]:
    """A factory and the classes whose constructors get what it does not name itself."""
    from nnunetv2.model.segmentation_model import ViTSegmentationModel

    made = factory if inspect.isclass(factory) else _signature(factory).return_annotation
    if not inspect.isclass(made) or not issubclass(made, ViTSegmentationModel):
        return [factory]
    return [factory, *(base for base in made.__mro__ if issubclass(base, ViTSegmentationModel))]


def _signature(called: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(called, eval_str=True)
    except Exception:  # an annotation for type checkers only, or none that Python can evaluate: it alone stays a text
        signature = inspect.signature(called)
    function = inspect.unwrap(called.__init__ if inspect.isclass(called) else called)
    names = getattr(function, "__globals__", {})
    parameters = [p.replace(annotation=_evaluated(p.annotation, names)) for p in signature.parameters.values()]
    returned = _evaluated(signature.return_annotation, names)
    return signature.replace(parameters=parameters, return_annotation=returned)


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)
    except Exception:  # whatever the expression raises
        return annotation


def _field_of(parameter: inspect.Parameter) -> tuple:
    default = field() if parameter.default is parameter.empty else field(default_factory=lambda: parameter.default)
    return parameter.name, _checkable(parameter.annotation), default


def _checkable(annotation: Any) -> Any:
    """The annotation, or `Any` where there is none that can be evaluated, or values in files can have no such type."""
    if isinstance(annotation, str):  # pydantic would look its names up here
        return Any
    try:
        TypeAdapter(annotation).validate_json("null", strict=True)
    except ValidationError:  # it is a type, of other values
        pass
    except Exception:  # pydantic's, or Python's, of an annotation that cannot be evaluated
        return Any
    return Any if annotation is inspect.Parameter.empty else annotation


def decoder_keywords(
    model: Any, batch_size: int, regions: bool, features_per_stage: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return all options of a decoder; its module may have a function that decides on what is automatic.

    Args:
        model: the section `model` of a configuration.
        batch_size: images per batch.
        regions: whether the data set declares regions.
        features_per_stage: widths of the U-Net of the plans; None if they describe none.

    Raises:
        ExperimentError: the module cannot decide, or see `complete_options`.
    """
    resolve_options = getattr(load_decoder(model.model_path), RESOLVER, None)
    options = model.decoder
    if resolve_options is not None:
        planned = {"features_per_stage": features_per_stage}
        wanted = {name: planned[name] for name in inspect.signature(resolve_options).parameters.keys() & planned}
        try:
            options = dict(resolve_options(dict(options), batch_size, regions, **wanted))
            json.dumps(options)  # what cannot be written into plans is told now
        except Exception as error:  # a user's own decoder can raise anything
            raise not_to_be_built(error) from error
    return complete_options(model.model_path, options)


def complete_options(model_path: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check the options of a decoder, and add the defaults of the others, so that plans do not depend on them.

    Defaults are those of the options that the factory itself names: what it only hands on, it may have set itself.

    Args:
        model_path: dotted name of its module.
        options: the keys of `model.decoder`.

    Raises:
        ExperimentError: names every unknown key and every wrong type, one in a line; or see `load_decoder`.
    """
    schema = read_options(model_path)
    misplaced = [
        f"model.decoder.{name} (value {options[name]!r}) is not an option of the decoder: the backbone's have keys of "
        "their own in model, lora and train"
        for name in options.keys() & backbone_keywords()
    ]
    others = {name: value for name, value in options.items() if name not in backbone_keywords()}
    errors = (describe(error, schema, "model.decoder.") for error in check(schema, others))
    refuse([*misplaced, *errors], model_path)
    own = _signature(getattr(load_decoder(model_path), FACTORY)).parameters
    defaults = {
        f.name: f.default_factory() for f in fields(schema) if f.name in own and f.default_factory is not MISSING
    }
    return plain({**{name: value for name, value in defaults.items() if isinstance(value, PLAIN_TYPES)}, **options})
