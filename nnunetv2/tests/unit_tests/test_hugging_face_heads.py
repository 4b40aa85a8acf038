"""Our heads of SegFormer and DPT are those of Hugging Face: states load both ways, and the outputs are the same."""

import pytest
import torch
from torch import Tensor, nn
from transformers import DPTConfig, SegformerConfig, SegformerDecodeHead
from transformers.models.dpt.modeling_dpt import DPTNeck, DPTSemanticSegmentationHead

from nnunetv2.model.model_dpt import DPTSegmentationModel
from nnunetv2.model.model_segformer import SegFormerSegmentationModel

CLASSES, WIDTH = 3, 8
DEAD = "neck.fusion_stage.layers.0.residual_layer1."  # Hugging Face builds it, but never runs it


class HuggingFaceSegFormer(nn.Module):
    def __init__(self, embed_dim: int):
        super().__init__()
        config = SegformerConfig(hidden_sizes=[embed_dim] * 4, decoder_hidden_size=WIDTH, num_labels=CLASSES)
        self.decode_head = SegformerDecodeHead(config)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.decode_head(maps)


class HuggingFaceDPT(nn.Module):
    def __init__(self, embed_dim: int, readout_type: str, batch_norm: bool):
        super().__init__()
        config = DPTConfig(
            hidden_size=embed_dim,
            neck_hidden_sizes=[embed_dim] * 4,
            neck_ignore_stages=[],
            fusion_hidden_size=WIDTH,
            readout_type=readout_type,
            use_batch_norm_in_fusion_residual=batch_norm,
            num_labels=CLASSES,
        )
        self.neck, self.head = DPTNeck(config), DPTSemanticSegmentationHead(config)
        for layer in self.neck.fusion_stage.layers:
            layer.align_corners = False  # what ours differs in on purpose

    def forward(self, tokens: list[Tensor], grid: tuple[int, int]) -> Tensor:
        fused = self.neck(tokens, *grid)[-1]
        return self.head.head[:-1](fused)  # the last layer only doubles the size


def names_of_today(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of any release of transformers from 4.50 on with the names of 5.23."""
    return {
        name.replace("decode_head.linear_c.", "decode_head.linear_projections."): tensor
        for name, tensor in state.items()
    }


def names_of(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: a state with the names that the installed release has."""
    return {
        name: state[today] for name, today in zip(module.state_dict(), names_of_today(module.state_dict()), strict=True)
    }


def decoder_state(model: nn.Module) -> dict[str, Tensor]:
    foreign = ("backbone.", "input_")
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(foreign)}


def randomise(module: nn.Module) -> None:
    """Statistics of batch norm that are not those of a new module, which would hide what they do."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.5 if name.endswith("running_var") else torch.randn_like(tensor) / 4
                )


def parameter_order(module: nn.Module) -> list[str]:
    """Names of a decoder's parameters in the order by which an optimizer's state is assigned to them."""
    names = names_of_today(dict(module.named_parameters()))
    return [name for name in names if not name.startswith(("backbone.", DEAD))]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def load_both_ways(ours: nn.Module, theirs: nn.Module) -> None:
    """Load Hugging Face's state into ours, and ours into theirs, both strictly; afterwards the two are equal."""
    randomise(theirs)
    state = {name: tensor for name, tensor in names_of_today(theirs.state_dict()).items() if not name.startswith(DEAD)}
    own = ours.state_dict()
    ours.load_state_dict({**{name: own[name] for name in own.keys() - decoder_state(ours).keys()}, **state})
    dead = {name: tensor for name, tensor in theirs.state_dict().items() if name.startswith(DEAD)}
    theirs.load_state_dict(names_of(theirs, {**decoder_state(ours), **dead}))


@pytest.mark.parametrize("upsampling", ["bilinear", "full"])
def test_segformers_head(upsampling: str):
    torch.manual_seed(0)
    model = SegFormerSegmentationModel("dinov3", "tiny", CLASSES, decoder_hidden_size=WIDTH, upsampling=upsampling)
    theirs = HuggingFaceSegFormer(model.embed_dim)
    load_both_ways(model, theirs)
    assert parameters(model.decode_head) == parameters(theirs)
    model, theirs = model.double().eval(), theirs.double().eval()
    maps = [torch.randn(2, model.embed_dim, 5, 7, dtype=torch.float64) for _ in range(4)]
    with torch.no_grad():
        torch.testing.assert_close(model.decode_head(maps), theirs(maps), rtol=1e-11, atol=1e-11)


def test_a_checkpoint_with_the_names_of_earlier_releases_loads():
    torch.manual_seed(0)
    options = {"decoder_hidden_size": WIDTH, "upsampling": "bilinear"}
    trained, model = (SegFormerSegmentationModel("dinov3", "tiny", CLASSES, **options).eval() for _ in range(2))
    former = {
        name.replace("decode_head.linear_projections.", "decode_head.linear_c."): tensor
        for name, tensor in trained.state_dict().items()
    }
    assert former.keys() != trained.state_dict().keys()
    model.load_state_dict(former)
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(model(image), trained(image))


@pytest.mark.parametrize("grid", [(6, 8), (5, 7), (1, 1)])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("readout_type", ["project", "add", "ignore"])
def test_dpts_neck_and_head(readout_type: str, batch_norm: bool, grid: tuple[int, int]):
    torch.manual_seed(0)
    options = {"readout_type": readout_type, "use_batch_norm_in_fusion_residual": batch_norm}
    model = DPTSegmentationModel("dinov3", "tiny", CLASSES, fusion_hidden_size=WIDTH, **options)
    theirs = HuggingFaceDPT(model.embed_dim, readout_type, batch_norm)
    load_both_ways(model, theirs)
    dead = parameters(theirs.neck.fusion_stage.layers[0].residual_layer1)
    assert parameters(model.neck) + parameters(model.head) == parameters(theirs) - dead
    model, theirs = model.double().eval(), theirs.double().eval()
    tokens = [torch.randn(2, 1 + grid[0] * grid[1], model.embed_dim, dtype=torch.float64) for _ in range(4)]
    with torch.no_grad():
        ours = model.head(model.neck(tokens, grid))
        torch.testing.assert_close(ours, theirs(tokens, grid), rtol=1e-11, atol=1e-11)


def test_dpts_neck_tells_the_parts_apart():
    """The comparison would see a class token that is left out, and corners that are aligned."""
    torch.manual_seed(0)
    model = DPTSegmentationModel("dinov3", "tiny", CLASSES, fusion_hidden_size=WIDTH).double().eval()
    theirs = HuggingFaceDPT(model.embed_dim, "project", True).double().eval()
    load_both_ways(model, theirs)
    tokens = [torch.randn(1, 1 + 6 * 8, model.embed_dim, dtype=torch.float64) for _ in range(4)]
    with torch.no_grad():
        ours = model.head(model.neck(tokens, (6, 8)))
        without_token = [torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], dim=1) for x in tokens]
        assert (theirs(without_token, (6, 8)) - ours).abs().max() > 1e-3
        for layer in theirs.neck.fusion_stage.layers:
            layer.align_corners = True
        assert (theirs(tokens, (6, 8)) - ours).abs().max() > 1e-3


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("readout_type", ["project", "add", "ignore"])
def test_the_optimizer_of_a_training_with_hugging_faces_dpt_goes_on(readout_type: str, batch_norm: bool):
    options = {"readout_type": readout_type, "use_batch_norm_in_fusion_residual": batch_norm}
    model = DPTSegmentationModel("dinov3", "tiny", CLASSES, fusion_hidden_size=WIDTH, **options)
    assert parameter_order(model) == parameter_order(HuggingFaceDPT(model.embed_dim, readout_type, batch_norm))


def test_the_optimizer_of_a_training_with_hugging_faces_segformer_goes_on():
    options = {"decoder_hidden_size": WIDTH, "upsampling": "bilinear"}
    model = SegFormerSegmentationModel("dinov3", "tiny", CLASSES, **options)
    assert parameter_order(model) == parameter_order(HuggingFaceSegFormer(model.embed_dim))


def test_a_new_head_is_initialised_as_hugging_faces():
    torch.manual_seed(0)
    segformer = SegFormerSegmentationModel("dinov3", "tiny", CLASSES, decoder_hidden_size=WIDTH, upsampling="bilinear")
    dpt = DPTSegmentationModel("dinov3", "tiny", CLASSES, fusion_hidden_size=WIDTH)
    theirs = HuggingFaceSegFormer(96).state_dict() | HuggingFaceDPT(96, "project", True).state_dict()
    for name, expected in names_of_today(theirs).items():
        if expected.is_floating_point() and expected.numel() > 500 and not name.startswith(DEAD):
            found = (decoder_state(segformer) | decoder_state(dpt))[name]
            # uniform in ±1/√fan-in: the largest of many comes close to the bound
            assert found.abs().max().item() == pytest.approx(expected.abs().max().item(), rel=0.05), name
            assert found.std().item() == pytest.approx(expected.std().item(), rel=0.1), name
