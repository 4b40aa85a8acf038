"""Every object reproduces the reference's numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_cases import Case, check_equal, flatten, imported
from peft import LoraConfig, get_peft_model
from torch import Tensor

from dinov3.eval.segmentation.models.utils.ms_deform_attn import (
    MSDeformAttn,
    ms_deform_attn_core_pytorch,
    pixel_centres,
)
from dinov3.eval.segmentation.models.utils.position_encoding import PositionEmbeddingSine


def run_vit(case: Case) -> dict[str, Tensor]:
    model, found = case.build(), {}
    for image, x in case.inputs("img").items():
        for kind, norm in (("norm", True), ("raw", False)):
            layers = model.get_intermediate_layers(
                x,
                n=case.spec["n_list"],
                reshape=True,
                norm=norm,
                return_class_token=True,
                return_extra_tokens=True,
            )
            for i, values in enumerate(layers):
                names = (f"img{image}.{kind}.layer{i}.{part}" for part in ("patch", "cls", "extra"))
                found |= dict(zip(names, values, strict=True))
        features = model.forward_features(x)
        found |= {f"img{image}.{name}": value for name, value in features.items() if value is not None}
        found[f"img{image}.forward"] = model(x)
        found |= flatten(model.get_intermediate_layers(x, n=2), f"img{image}.last2")
    masked = model.forward_features(case.inputs()["img0"], case.inputs()["mask_img0"].bool())
    found["masked.img0.x_norm_patchtokens"] = masked["x_norm_patchtokens"]
    sines, cosines = model.rope_embed.get_embed((4, 6)).chunk(2, dim=-1)
    return found | {"img0.rope.sin": sines, "img0.rope.cos": cosines}


def run_adapter(case: Case) -> dict[str, Tensor]:
    adapter, x = case.build(), case.inputs()["x"]
    found = adapter(x) | {f"spm.c{i}": value for i, value in enumerate(adapter.spm(x), start=1)}
    height, width = x.shape[-2:]
    for name, strides in (("deform_inputs1", (16,)), ("deform_inputs2", (8, 16, 32))):
        points = pixel_centres([(height // stride, width // stride) for stride in strides], x)
        found[f"{name}.reference_points"] = points
    return found


def run_pixel_decoder(case: Case) -> dict[str, Tensor]:
    names = ("mask_features", "transformer_encoder_features", "multi_scale_features")
    return flatten(dict(zip(names, case.build().forward_features(case.inputs("features.")), strict=True)))


def run_transformer_decoder(case: Case) -> dict[str, Tensor]:
    inputs = case.inputs()
    return flatten(case.build()([inputs[f"x.{i}"] for i in range(3)], inputs["mask_features"]))


def run_head(case: Case) -> dict[str, Tensor]:
    head, features = case.build(), case.inputs("features.")
    return flatten(head(features)) | _predicted(head.predict(features, rescale_to=case.spec["predict_rescale_to"]))


def run_m2f(case: Case) -> dict[str, Tensor]:
    model, x = case.build(), case.inputs()["x"]
    expected = case.outputs("predict.")["pred_masks.batch0.first8"]
    return flatten(model(x)) | _predicted(model.predict(x, rescale_to=expected.shape[-2:]))


def _predicted(output: dict) -> dict[str, Tensor]:
    few = output["pred_masks"][0, :8]
    return {"predict.pred_masks.batch0.first8": few, "predict.pred_logits": output["pred_logits"]}


def run_linear(case: Case) -> dict[str, Tensor]:
    model, x = case.build(), case.inputs()["x"]
    return {"forward": model(x), "predict": model.predict(x, rescale_to=case.spec["predict_rescale_to"])}


RUNS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "vit_backbone_mlp": run_vit,
    "vit_backbone_swiglu": run_vit,
    "vit_backbone_swiglu64": run_vit,
    "adapter": run_adapter,
    "adapter_alt": run_adapter,
    "pixel_decoder": run_pixel_decoder,
    "pixel_decoder_nonorm": run_pixel_decoder,
    "transformer_decoder": run_transformer_decoder,
    "transformer_decoder_prenorm": run_transformer_decoder,
    "mask2former_head": run_head,
    "segmentor_m2f": run_m2f,
    "segmentor_linear_last": run_linear,
    "segmentor_linear_four": run_linear,
}
# What only the reference's own way of computing has: shapes of the maps, as tensors.
INTERNAL = ("spatial_shapes", "level_start_index")


@pytest.mark.parametrize("name", RUNS)
def test_outputs_equal_the_reference(name: str, golden: Path):
    case = Case(golden, name)
    with torch.no_grad():
        found = RUNS[name](case)
    expected = {n: v for n, v in case.outputs().items() if not n.endswith(INTERNAL)}
    check_equal(found, expected)


def test_another_weight_is_told(golden: Path):
    case = Case(golden, "pixel_decoder")
    case.state["mask_feature.bias"] = case.state["mask_feature.bias"] + 1e-3
    with torch.no_grad(), pytest.raises(AssertionError, match="mask_features"):
        check_equal(run_pixel_decoder(case), case.outputs())


def test_position_encoding(golden: Path):
    case = Case(golden, "position_encoding")
    encodings = imported(case.spec["object"])
    assert encodings is PositionEmbeddingSine
    found = {}
    for name, arguments in case.spec["constructor"].items():
        options = {key: value for key, value in arguments.items() if key not in ("shape", "masked")}
        mask = case.inputs()[f"{name}.mask"].bool() if arguments.get("masked") else None
        found[name] = encodings(**options)(torch.zeros(arguments["shape"]), mask)
    check_equal(found, case.outputs())


@pytest.mark.parametrize("name", ["c0", "c1", "c2", "c3"])
def test_deformable_attention_and_its_gradients(name: str, golden: Path):
    case = Case(golden, "ms_deform_attn")
    assert imported(case.spec["object"]) is ms_deform_attn_core_pytorch
    inputs = case.inputs(f"{name}.")
    names = ("value", "sampling_locations", "attention_weights")
    leaves = {key: inputs[key].requires_grad_() for key in names}
    output = ms_deform_attn_core_pytorch(leaves["value"], inputs["spatial_shapes"], *(leaves[key] for key in names[1:]))
    check_equal({name: output}, {name: case.outputs()[name]})
    (output * inputs["cotangent"]).sum().backward()
    gradients = case.gradients(f"{name}.")
    if name == "c3":  # on the border, where the gradient jumps
        assert not gradients
    else:
        check_equal({key: leaf.grad for key, leaf in leaves.items()}, gradients)


@pytest.mark.parametrize("variant", ["v0", "v1", "v2"])
def test_deformable_attention_module(variant: str, golden: Path):
    case = Case(golden, "ms_deform_attn_module")
    module = imported(case.spec["object"])(**case.spec["constructor"][variant])
    initial = module.sampling_offsets.bias
    if variant == "v0":
        check_equal({"bias": initial}, {"bias": case.outputs("init.v0.sampling_offsets.")["bias"]})
    prefix = f"{variant}."
    module.load_state_dict({k.removeprefix(prefix): v for k, v in case.state.items() if k.startswith(prefix)})
    inputs, found = case.inputs(prefix), {}
    maps = (inputs["input_flatten"], inputs["spatial_shapes"], inputs["level_start_index"])
    for output, points, mask in (
        ("ref2", "reference_points2", None),
        ("ref2_padded", "reference_points2", inputs["padding_mask"].bool()),
        ("ref4", "reference_points4", None),
    ):
        found[output] = module(inputs["query"], inputs[points], *maps, mask)
    check_equal(found, case.outputs(prefix))


def test_heads_that_cannot_share_the_channels():
    with pytest.raises(ValueError, match="30 channels of the values cannot be shared by 16"):
        MSDeformAttn(30, 1, 16, 4)


def test_adapter_with_lora_and_its_gradients(golden: Path):
    case = Case(golden, "adapter_lora")
    arguments = case.arguments()
    lora = {key: value for key, value in arguments.pop("lora").items() if key != "enabled"}
    vit = get_peft_model(arguments.pop("backbone"), LoraConfig(**lora))
    adapter = imported("dinov3.eval.segmentation.models.backbone.dinov3_adapter.DINOv3_Adapter")(vit, **arguments)
    adapter.load_state_dict(case.state, strict=True)
    outputs = adapter.eval()(case.inputs()["x"])
    check_equal(outputs, {name: value for name, value in case.outputs().items() if name in outputs})
    sum(output.square().mean() for output in outputs.values()).backward()
    parameters = dict(adapter.named_parameters())
    for name, norm in case.spec["gradient_check"]["lora_grad_l2_norm_f64"].items():
        assert float(parameters[name].grad.norm()) == pytest.approx(norm, rel=1e-4), name


def test_gradients_of_the_whole_segmentor(golden: Path):
    case = Case(golden, "segmentor_m2f")
    model = case.build()
    output = model(case.inputs()["x"])
    layers = [output, *output["aux_outputs"]]
    sum(layer["pred_masks"].square().mean() + layer["pred_logits"].square().mean() for layer in layers).backward()
    parameters = dict(model.named_parameters())
    compared = 0
    for name, norm in case.spec["gradient_check"]["grad_l2_norm_f64"].items():
        if norm is not None and norm > 1e-3 and name in parameters:
            assert float(parameters[name].grad.norm()) == pytest.approx(norm, rel=2e-2), name
            compared += 1
    assert compared > 300
    gradients = case.gradients()
    assert len(gradients) == 9
    for name, reference in gradients.items():
        difference = (parameters[name].grad - reference).norm() / reference.norm()
        assert float(difference) < 2e-2, name
    assert all(p.grad is None for n, p in parameters.items() if ".backbone." in n)
