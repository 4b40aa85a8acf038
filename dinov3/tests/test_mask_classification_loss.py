"""The loss of mask classification: the reference's numbers, ignored pixels, empty images, several processes."""

import os
import socket
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from golden_cases import Case, check_equal
from torch import Tensor

from dinov3.eval.segmentation import hungarian_matcher
from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from dinov3.eval.segmentation.target_batch import TargetBatch

KINDS = ("clean", "noisy")
DRAWS = ("matcher_points.0", "matcher_points.1", "candidate_points", "random_points")
Targets = list[dict[str, Tensor]]


def small_loss(num_points: int = 64, oversample_ratio: float = 3.0, uncertain: float = 0.75) -> MaskClassificationLoss:
    return MaskClassificationLoss(num_points, oversample_ratio, uncertain, 5.0, 5.0, 2.0, 3, 0.1)


def predictions(batch: int = 2, queries: int = 6, layers: int = 3) -> dict:
    torch.manual_seed(0)
    outputs = [
        {
            "pred_masks": torch.randn(batch, queries, 8, 8, requires_grad=True),
            "pred_logits": torch.randn(batch, queries, 4, requires_grad=True),
        }
        for _ in range(layers)
    ]
    return {**outputs[0], "aux_outputs": outputs[1:]}


def targets(batch: int = 2, side: int = 32) -> Targets:
    torch.manual_seed(1)
    labels = torch.randint(3, (batch, side // 8, side // 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, 0, :3] = torch.arange(3)
    return [{"masks": (image == torch.arange(3).view(-1, 1, 1)).float(), "labels": torch.arange(3)} for image in labels]


def empty(target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"masks": target["masks"][:0], "labels": target["labels"][:0]}


# --- the reference's numbers ----------------------------------------------------------------------------------------


class Reference:
    """The loss with predictions and targets of the reference."""

    def __init__(self, golden: Path, kind: str) -> None:
        self.case = Case(golden, "mask_classification_loss")
        self.loss = MaskClassificationLoss(**self.case.spec["constructor"])
        self.kind = kind
        inputs = self.case.inputs()
        self.masks = inputs[f"{kind}.masks_queries_logits"].requires_grad_()
        self.classes = inputs[f"{kind}.class_queries_logits"].requires_grad_()
        self.targets = [
            {"masks": inputs[f"target{i}.masks"], "labels": inputs[f"target{i}.labels"].long()} for i in range(2)
        ]

    def compute(self) -> dict[str, Tensor]:
        losses = self.loss(self.masks, self.targets, self.classes)
        return {**losses, "loss_total": self.loss.loss_total(losses)}


@pytest.fixture(params=KINDS)
def reference(request: pytest.FixtureRequest, golden: Path) -> Reference:
    return Reference(golden, request.param)


def test_costs(reference: Reference):
    inputs, kind = reference.case.inputs(f"{reference.kind}."), reference.kind
    points = torch.cat([inputs["matcher_points.0"], inputs["matcher_points.1"]])
    batch = TargetBatch(reference.targets, points.device)
    with torch.no_grad():
        costs = reference.loss.matcher.costs([reference.masks], [reference.classes], batch, points)
    for image, count in enumerate(batch.counts):
        found = {name: getattr(costs, name)[0, image, :, :count] for name in ("mask", "dice", "classes")}
        names = {"mask": "cost_mask", "dice": "cost_dice", "classes": "cost_class"}
        expected = {name: reference.case.outputs(f"{kind}.")[f"{key}.{image}"] for name, key in names.items()}
        check_equal(found, expected)
        weighted = sum(w * found[name] for w, name in zip((5.0, 5.0, 2.0), names, strict=True))
        check_equal({"total": weighted}, {"total": reference.case.outputs(f"{kind}.")[f"cost_total.{image}"]})


def test_losses_and_gradients_at_given_points(reference: Reference):
    draws = [reference.case.inputs(f"{reference.kind}.")[name] for name in DRAWS]
    with mock.patch("torch.rand", side_effect=draws):
        losses = reference.compute()
    check_equal(losses, reference.case.outputs(f"{reference.kind}.fixed_points."))
    losses["loss_total"].backward()
    gradients = reference.case.gradients(f"{reference.kind}.fixed_points.loss_total.")
    check_equal(
        {"masks_queries_logits": reference.masks.grad, "class_queries_logits": reference.classes.grad}, gradients
    )


def test_assignments(reference: Reference):
    points = [reference.case.inputs(f"{reference.kind}.")[name] for name in DRAWS[:2]]
    batch = TargetBatch(reference.targets, reference.masks.device)
    with mock.patch("torch.rand", side_effect=points):
        matches = reference.loss.matcher([reference.masks], [reference.classes], batch)
    found = dict(zip(matches.targets[0].tolist(), matches.queries[0].tolist(), strict=True))
    outputs, queries = reference.case.outputs(f"{reference.kind}."), reference.masks.shape[1]
    expected = {}
    for image in range(2):
        pairs = zip(outputs[f"match_target.{image}"].tolist(), outputs[f"match_query.{image}"].tolist(), strict=True)
        expected |= {batch.first[image] + target: image * queries + query for target, query in pairs}
    assert found == expected


def test_seeded_values(reference: Reference):
    for seed, values in reference.case.spec["cases"][reference.kind]["seeded_values"].items():
        torch.manual_seed(int(seed))
        found = reference.compute()
        assert {name: found[name].item() for name in values} == pytest.approx(values, rel=1e-5)


def test_edge_cases(golden: Path):
    reference = Reference(golden, "clean")
    cases = reference.case.spec["edge_cases"]
    first, second = reference.targets
    for name, images in (("last_image_empty", [first, empty(second)]), ("all_images_empty", [empty(first)] * 2)):
        torch.manual_seed(0)
        found = reference.loss(reference.masks, images, reference.classes)
        expected = cases[name]["seed0"]
        assert {key: found[key].item() for key in expected} == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_weights_and_log_of_the_total(golden: Path):
    reference, calls = Reference(golden, "clean"), []
    spec = reference.case.spec["loss_total"]
    total = reference.loss.loss_total(
        {name: torch.tensor(value) for name, value in spec["input"].items()},
        lambda name, value, **options: calls.append([name, pytest.approx(float(value)), options]),
    )
    assert float(total) == pytest.approx(spec["output"]) and calls == spec["log_calls"]
    with pytest.raises(ValueError, match="unknown loss 'loss_boundary'"):
        reference.loss.loss_total({"loss_boundary": total})


# --- contracts of our own -------------------------------------------------------------------------------------------


def test_layers_together_are_the_layers_one_by_one():
    outputs, images, loss = predictions(), targets(), small_loss()
    together = loss.of_all_layers(outputs, images)
    assert set(together) == {f"loss_{n}{s}" for n in ("mask", "dice", "cross_entropy") for s in ("", "_0", "_1")}
    wide = small_loss(40_000, 1.0, 0.0)  # so many points, none preferred, that their draw hardly matters
    together = wide.of_all_layers(outputs, images)
    for suffix, layer in zip(("", "_0", "_1"), (outputs, *outputs["aux_outputs"]), strict=True):
        alone = wide(layer["pred_masks"], images, layer["pred_logits"])
        for name, value in alone.items():
            assert together[name + suffix].item() == pytest.approx(value.item(), rel=0.02), name


def test_layers_may_have_masks_of_different_sizes_and_many_queries():
    torch.manual_seed(0)
    layers, batch = [torch.randn(2, 60, 5, 9), torch.randn(2, 60, 16, 16)], TargetBatch(targets(), torch.device("cpu"))
    points, classes = torch.rand(2, 70, 2), torch.randn(2, 60, 4)
    costs = small_loss().matcher.costs
    together = costs(layers, [classes, classes], batch, points)
    for i, masks in enumerate(layers):
        parts = [costs([part], [classes[:, :20]], batch, points) for part in masks.split(20, dim=1)]
        for name in ("mask", "dice"):
            alone = torch.cat([getattr(part, name)[0] for part in parts], dim=1)
            torch.testing.assert_close(getattr(together, name)[i], alone)


@pytest.mark.parametrize("ignore", [False, True])
def test_forms_for_cpu_and_gpu_agree(ignore: bool):
    torch.manual_seed(0)
    masks, images = [torch.randn(2, 60, 5, 9) * 5, torch.randn(2, 60, 16, 16)], targets()
    masks[0][0, 0], masks[0][0, 1] = 80.0, -200.0
    if ignore:
        images[0]["valid"] = torch.arange(32 * 32).view(32, 32) % 32 < 20
    batch = TargetBatch(images, torch.device("cpu"))
    points, classes = torch.rand(2, 70, 2), [torch.randn(2, 60, 4)] * 2
    by_parts = small_loss().matcher.costs(masks, classes, batch, points)
    with mock.patch.object(hungarian_matcher, "sum_by_parts", hungarian_matcher.sum_at_once):
        at_once = small_loss().matcher.costs(masks, classes, batch, points)
    torch.testing.assert_close(tuple(at_once), tuple(by_parts))


def test_ignored_pixels_have_no_effect():
    outputs, images, loss = predictions(), targets(), small_loss(num_points=2000)
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[:, 16:] = False
    changed = [target["masks"].clone() for target in images]
    for masks in changed:
        masks[..., ~valid] = 1 - masks[..., ~valid]
    values = []
    for masks in ([target["masks"] for target in images], changed):
        torch.manual_seed(0)
        marked = [
            {"masks": m, "labels": target["labels"], "valid": valid} for m, target in zip(masks, images, strict=True)
        ]
        losses = loss.of_all_layers(outputs, marked)
        (gradient,) = torch.autograd.grad(loss.loss_total(losses), outputs["pred_masks"])
        assert float(gradient[..., 5:].abs().max()) == 0 < float(gradient[..., :4].abs().max())
        values.append([value.item() for value in losses.values()])
    assert values[0] == values[1]
    torch.manual_seed(0)
    everywhere = [float(value) for value in loss.of_all_layers(outputs, images).values()]
    torch.manual_seed(0)
    all_valid = [{**target, "valid": torch.ones_like(valid)} for target in images]
    assert everywhere == pytest.approx([float(v) for v in loss.of_all_layers(outputs, all_valid).values()], rel=1e-5)
    assert everywhere != values[0]


@pytest.mark.parametrize("emptied", [(0,), (1,), (0, 1)])
def test_images_without_a_labelled_class(emptied: tuple[int, ...]):
    outputs, images, loss = predictions(), targets(), small_loss()
    some = [empty(target) if i in emptied else target for i, target in enumerate(images)]
    if len(emptied) == 2:
        some[0]["valid"] = torch.zeros(32, 32, dtype=torch.bool)
    losses = loss.of_all_layers(outputs, some)
    total = loss.loss_total(losses)
    total.backward()
    assert bool(total.isfinite())
    for layer in (outputs, *outputs["aux_outputs"]):
        assert bool(layer["pred_logits"].grad.any()) and layer["pred_masks"].grad is not None
        assert bool(layer["pred_masks"].grad.any()) == (len(emptied) < 2)


@pytest.mark.parametrize("ignored", [(1,), (0, 1)])
def test_an_image_that_is_ignored_as_a_whole_does_not_count(ignored: tuple[int, ...]):
    outputs, images, loss = predictions(), targets(), small_loss()
    nothing = torch.zeros(32, 32, dtype=torch.bool)
    some = [{**empty(target), "valid": nothing} if i in ignored else target for i, target in enumerate(images)]
    losses = loss.of_all_layers(outputs, some)
    loss.loss_total(losses).backward()
    for layer in (outputs, *outputs["aux_outputs"]):
        counted = [bool(layer["pred_logits"].grad[i].any()) for i in range(2)]
        assert counted == [i not in ignored for i in range(2)]
    if len(ignored) == 2:
        assert all(float(value.detach()) == 0 for value in losses.values())


@pytest.mark.parametrize("label", [-1, 3, 4])
def test_an_unknown_label_is_an_error(label: int):
    images = targets()
    images[0]["labels"][0] = label
    with pytest.raises(ValueError, match=f"labels of targets must be from 0 to 2, found {label}"):
        small_loss().of_all_layers(predictions(), images)


def test_more_targets_than_queries_and_masks_that_overlap():
    outputs = predictions(queries=2)
    masks = (torch.rand(5, 32, 32) > 0.3).float()
    images = [{"masks": masks, "labels": torch.tensor([0, 1, 2, 0, 1])}] * 2
    losses = small_loss().of_all_layers(outputs, images)
    assert all(bool(value.isfinite()) for value in losses.values())


def test_half_precision_is_computed_in_float32():
    outputs, images, loss = predictions(), targets(), small_loss()
    layer = {name: outputs[name].detach().bfloat16() for name in ("pred_masks", "pred_logits")}
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        half = loss.of_all_layers({**layer, "aux_outputs": []}, images)
    torch.manual_seed(0)
    widened = {name: value.float() for name, value in layer.items()}
    full = loss.of_all_layers({**widened, "aux_outputs": []}, images)
    assert {n: float(v) for n, v in half.items()} == {n: float(v) for n, v in full.items()}
    assert all(value.dtype == torch.float32 for value in half.values())


def test_predictions_that_are_not_finite_can_be_matched():
    outputs, images = predictions(), targets()
    with torch.no_grad():
        outputs["pred_masks"][0, 0] = torch.nan
        outputs["pred_masks"][1, 1] = torch.inf
    small_loss().of_all_layers(outputs, images)


def test_predictions_and_targets_that_are_not_finite_at_ignored_pixels():
    outputs, images, loss = predictions(), targets(), small_loss(2000)
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[:, 8:] = False
    with torch.no_grad():
        outputs["pred_masks"][..., 4:] = torch.nan
    for target in images:
        target["valid"] = valid
        target["masks"][..., 16:] = torch.nan
    assert all(bool(value.isfinite()) for value in loss.of_all_layers({**outputs, "aux_outputs": []}, images).values())


def test_ignored_pixels_are_not_chosen_as_uncertain():
    outputs, images = predictions(), targets()
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[:, 16:] = False
    with torch.no_grad():  # where it is ignored the masks are most uncertain
        outputs["pred_masks"][..., 4:] = 0.0
    marked = [{**target, "valid": valid} for target in images]
    torch.manual_seed(0)
    loss = small_loss(100, 8.0, 1.0).of_all_layers({**outputs, "aux_outputs": []}, marked)["loss_mask"]
    (gradient,) = torch.autograd.grad(loss, outputs["pred_masks"])
    assert loss.item() > 0.1 and bool(gradient[..., :4].any())


@pytest.mark.parametrize("labels", [torch.int32, torch.float32])
def test_labels_of_another_type(labels: torch.dtype):
    images = [{**target, "labels": target["labels"].to(labels)} for target in targets()]
    small_loss().of_all_layers(predictions(), [images[0], empty(images[1])])


def test_one_transfer_for_all_layers_and_images():
    outputs, images, loss = predictions(layers=5), targets(), small_loss()
    calls, transfer = [], Tensor.cpu
    with mock.patch.object(Tensor, "cpu", lambda tensor: calls.append(tensor.shape) or transfer(tensor)):
        loss.of_all_layers(outputs, images)
    assert calls == [(5, 2, 6, 3)]


def _losses_of_rank(rank: int, port: int, queue: "mp.Queue") -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    outputs, images = predictions(), targets()
    torch.manual_seed(0)
    losses = small_loss().of_all_layers(outputs, images if rank == 0 else [empty(target) for target in images])
    queue.put((rank, float(losses["loss_mask"].detach())))
    dist.destroy_process_group()


@pytest.mark.integration  # two processes load everything again
def test_the_number_of_masks_is_averaged_over_processes():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = mp.start_processes(_losses_of_rank, (port, queue), nprocs=2, join=False, start_method="spawn")
    values = dict(queue.get(timeout=120) for _ in range(2))
    processes.join()
    outputs, images = predictions(), targets()
    torch.manual_seed(0)
    alone = float(small_loss().of_all_layers(outputs, images)["loss_mask"].detach())
    assert values == {0: pytest.approx(2 * alone), 1: 0.0}  # 6 masks and none: 3 on average
