"""What a decoder module offers, read from its source: importing it would load torch."""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nnunetv2

MODEL_FOLDER = Path(nnunetv2.__path__[0]) / "model"
MASK2FORMER = "nnunetv2.model.model_m2f"  # returns queries, and so has a trainer and a schema of its own
FACTORY = "create_segmentation_model"
# What a module may have beside its factory, `(options, batch_size, regions) → options`, to decide on what is automatic.
RESOLVER = "resolve_options"
# A factory that hands `**backbone_options` on has no other options than it names; any other `**name` may take all.
BACKBONE_OPTIONS = "backbone_options"
# Keywords of every factory that come from elsewhere in the configuration or from nnU-Net.
COMMON_KEYWORDS = {
    "self", "num_classes", "input_channels", "deep_supervision", "backbone_name", "backbone_size", "checkpoint_path",
    "pretrained", "query_bias", "freeze_backbone", "use_lora", "lora_rank", "lora_alpha", "lora_dropout",
    "lora_target_modules", "out_layers", "input_norm", "precision",
}  # fmt: skip


# What YAML gives a list for.
LIST_TYPES = ("Sequence", "list", "tuple")
# Names of Python types to those that YAML gives for them.
YAML_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Option:
    """A keyword of a factory, as source text.

    Attributes:
        default: its default; empty if it has none.
        annotation: its type; empty if it has none.
    """

    default: str
    annotation: str

    @property
    def type_names(self) -> list[str]:
        """The types that it takes, of the annotation, or else that of the default: `int`, `list`, `null`, …"""
        if self.annotation:
            names = [_without_elements(node) for node in _alternatives(self.annotation)]
        else:
            names = [_type_name(self.default)]
        return ["list" if name in LIST_TYPES else {"None": "null"}.get(name, name) for name in names]

    @property
    def elements(self) -> "Option":
        """What stands in the list that it takes; an option that takes anything, if the annotation does not tell."""
        alternatives = _alternatives(self.annotation) if self.annotation else []
        lists = [node for node in alternatives if _without_elements(node) in LIST_TYPES]
        inner = lists[0].slice if len(lists) == 1 and isinstance(lists[0], ast.Subscript) else None
        if isinstance(inner, ast.Tuple):  # `tuple[int, ...]`; of others each element has a type of its own
            is_uniform = len(inner.elts) == 2 and ast.unparse(inner.elts[1]) == "..."
            inner = inner.elts[0] if is_uniform else None
        return Option("", _source(inner) or "any")


def _alternatives(annotation: str) -> list[ast.expr]:
    """The types that `|` joins in an annotation."""
    node: ast.expr = ast.parse(annotation, mode="eval").body
    last: list[ast.expr] = []
    while isinstance(node, ast.BinOp):
        node, last = node.left, [node.right, *last]
    return [node, *last]


def _without_elements(node: ast.expr) -> str:
    return ast.unparse(node.value if isinstance(node, ast.Subscript) else node)


def _type_name(default: str) -> str:
    try:
        value = ast.literal_eval(default)
    except (ValueError, SyntaxError):
        return "any"
    return "any" if value is None else type(value).__name__


@dataclass(frozen=True)
class Factory:
    """The signature of a decoder module's factory.

    Attributes:
        options: the decoder's own keywords.
        is_known: whether these are all; unknown of a factory that is imported or assigned, or takes any keyword.
    """

    options: dict[str, Option]
    is_known: bool = True


def read_factory(model_path: str) -> Factory:
    """Read the signature of `create_segmentation_model` from a module without importing it.

    Args:
        model_path: dotted name of the module; the packages above it are imported.

    Raises:
        ValueError: there is no such module, or it has no factory.
    """
    try:
        spec = importlib.util.find_spec(model_path)
    except ModuleNotFoundError:
        spec = None
    except Exception as error:  # whatever a package's own code raises
        raise ValueError(f"the packages above {model_path!r} cannot be imported: {error}") from error
    if spec is None or spec.origin is None:
        raise ValueError(
            f"module {model_path!r} not found: it must be importable, such as nnunetv2.model.model_upernet"
        )
    if not spec.origin.endswith(".py"):
        return Factory({}, is_known=False)
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"), filename=spec.origin)
    except SyntaxError as error:
        raise ValueError(f"module {model_path!r} is not valid Python: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == FACTORY:
            options = {k: v for k, v in _keywords(node.args).items() if k not in COMMON_KEYWORDS}
            rest = node.args.kwarg
            return Factory(options, is_known=rest is None or rest.arg == BACKBONE_OPTIONS)
        if FACTORY in _bound_names(node):
            return Factory({}, is_known=False)
    raise ValueError(f"module {model_path!r} ({spec.origin}) has no function {FACTORY}")


def packaged_decoders() -> list[str]:
    """Dotted names of the modules of this package that `model.model_path` can name."""
    modules = [f"nnunetv2.model.{path.stem}" for path in sorted(MODEL_FOLDER.glob("*.py"))]
    return [module for module in modules if module != MASK2FORMER and _has_factory(module)]


def _has_factory(module: str) -> bool:
    try:
        read_factory(module)
    except ValueError:
        return False
    return True


def misfits(name: str, value: object, option: Option) -> Iterator[str]:
    """Say what type an option and the elements of its list must have, where they have another.

    Args:
        name: what to call the option in the message.
        value: its value.
        option: its keyword in the factory; unknown types take any value.
    """
    names = option.type_names
    accepted = tuple(kind for type_name in names for kind in YAML_TYPES.get(type_name, (object,)))
    # Python counts a bool as an int
    if not isinstance(value, accepted) or (isinstance(value, bool) and not {bool, object} & {*accepted}):
        yield f"{name} must be {' or '.join(names)}, found {value!r}"
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from misfits(f"{name}[{index}]", element, option.elements)


def _keywords(arguments: ast.arguments) -> dict[str, Option]:
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return {argument.arg: Option(_source(default), _source(argument.annotation)) for argument, default in pairs}


def _source(node: ast.expr | None) -> str:
    return "" if node is None else ast.unparse(node)


def _bound_names(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()
