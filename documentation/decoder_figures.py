"""The data flow of every decoder, as boxes and arrows; a test compares every shape with that of the running network.

C channels of the image, K classes, D the width of the ViT, h × w patches, H × W the image padded to whole patches.
Of networks with queries: Q queries, P class and register tokens. The other widths are the decoders' defaults.
"""

import itertools

from drawing import Box, Figure

QUARTERS = ("1st", "2nd", "3rd", "last")
DEEPEST = "map4"
MAPS = ["map1", "map2", "map3", DEEPEST]
Arrows = list[tuple[str, str]]


def backbone(title: str = "map", shape: str = "D × h × w") -> tuple[dict[str, Box], Arrows]:
    """The ViT and what it gives at four depths."""
    boxes = {"vit": Box(0, 0, "image, normalised and padded → ViT", "C × H × W", "image", 4, "features")}
    for i, (name, quarter) in enumerate(zip(MAPS, QUARTERS, strict=True)):
        text = f"{title} {i + 1}: after the\n{quarter} quarter of blocks"
        boxes[name] = Box(i, 1, text, shape, f"features.{i}", kind="features")
    return boxes, [("vit", name) for name in MAPS]


def chain(*names: str) -> Arrows:
    """Arrows from each to the next."""
    return list(itertools.pairwise(names))


def upernet() -> Figure:
    """Pyramid pooling, top-down sums, learned upsampling."""
    boxes, arrows = backbone()
    for i in range(3):
        boxes[f"lateral{i}"] = Box(i, 2, "1×1 conv", "512 × h × w", f"decode_head.laterals.{i}")
        boxes[f"sum{i}"] = Box(i, 3, "+ the deeper one", "512 × h × w", f"decode_head.smooth.{i}:input")
        boxes[f"smooth{i}"] = Box(i, 4, "3×3 conv", "512 × h × w", f"decode_head.smooth.{i}")
        arrows += [*chain(f"map{i + 1}", f"lateral{i}", f"sum{i}", f"smooth{i}", "fuse")]
    pooling = "pyramid pooling\n(1, 2, 3, 6), 3×3 conv"
    boxes["pyramid"] = Box(3, 2, pooling, "512 × h × w", "decode_head.pyramid_pooling")
    boxes["fuse"] = Box(0, 5, "concatenated, 3×3 conv", "512 × h × w", "decode_head.fuse", 4)
    arrows += [*chain(DEEPEST, "pyramid", "sum2", "sum1", "sum0"), ("pyramid", "fuse")]

    plain = "use_progressive_\nupsample: false\n1×1 conv"
    boxes["plain"] = Box(0, 6, plain, "K × h × w", "classifier", kind="option", variant="plain")
    boxes["resized"] = Box(0, 7, "resized", "K × H × W", "logits", kind="result", variant="plain")
    arrows += chain("fuse", "plain", "resized")
    for i, width in enumerate((256, 128, 64)):
        scale, title = 2 ** (i + 1), "×2, two 3×3 conv, then + the skip"
        shape = f"{width} × {scale}h × {scale}w"
        boxes[f"stage{i}"] = Box(1, 6 + i, title, shape, f"upsampler.stages.{i}", 2, variant="learned")
        skip = f"map {4 - i}: 1×1 conv,\nthen resized"
        boxes[f"skip{i}"] = Box(3, 6 + i, skip, f"{width} × h × w", f"upsampler.skips.{i}", variant="learned")
        arrows.append((f"skip{i}", f"stage{i}"))
    last = "resized, two 3×3 conv"
    boxes["stage3"] = Box(1, 9, last, "32 × H × W", "upsampler.stages.3", 2, variant="learned")
    boxes["logits"] = Box(1, 10, "1×1 conv", "K × H × W", "logits", 2, "result", "learned")
    arrows += chain("fuse", "stage0", "stage1", "stage2", "stage3", "logits")
    variants = {"learned": {}, "plain": {"use_progressive_upsample": False}}
    return Figure(boxes, arrows, "nnunetv2.model.model_upernet", variants)


def segformer() -> Figure:
    """A linear layer per map, and three ways to the size of the image."""
    boxes, arrows = backbone()
    for i, name in enumerate(MAPS):
        boxes[f"linear{i}"] = Box(i, 2, "linear layer", "256 × h × w", f"decode_head.linear_projections.{i}")
        arrows += chain(name, f"linear{i}", "fuse")
    concatenated = "concatenated, deepest first, 1×1 conv"
    boxes["fuse"] = Box(0, 3, concatenated, "256 × h × w", "decode_head.linear_fuse", 4)
    norm, width = "batch norm, ReLU, dropout", 4 / 3

    def add(variant: str, column: int, row: int, title: str, shape: str, source: str, kind: str = "step") -> None:
        boxes[f"{variant}{row}"] = Box(column * width, row, title, shape, source, width, kind, variant)
        arrows.append(("fuse" if row == 4 else f"{variant}{row - 1}", f"{variant}{row}"))

    add("bilinear", 0, 4, f"upsampling: bilinear\n{norm}", "256 × h × w", "decode_head.dropout", "option")
    add("bilinear", 0, 5, "1×1 conv", "K × h × w", "decode_head.classifier")
    add("bilinear", 0, 6, "resized", "K × H × W", "logits", "result")
    norm_and_conv = f"upsampling: progressive\n{norm}, 1×1 conv"
    add("progressive", 1, 4, norm_and_conv, "256 × h × w", "decode_head", "option")
    add("progressive", 1, 5, "×2, two 3×3 conv", "256 × 2h × 2w", "upsampler.stages.0")
    add("progressive", 1, 6, "×2, two 3×3 conv", "128 × 4h × 4w", "upsampler.stages.1")
    add("progressive", 1, 7, "1×1 conv", "K × 4h × 4w", "upsampler.classifier")
    add("progressive", 1, 8, "resized", "K × H × W", "logits", "result")
    add("full", 2, 4, "upsampling: full\nresized", "256 × H × W", "decode_head.batch_norm:input", "option")
    add("full", 2, 5, norm, "256 × H × W", "decode_head.dropout")
    add("full", 2, 6, "1×1 conv", "K × H × W", "logits", "result")
    variants = {name: {"upsampling": name} for name in ("bilinear", "progressive", "full")}
    return Figure(boxes, arrows, "nnunetv2.model.model_segformer", variants)


def dpt() -> Figure:
    """Tokens reassembled at four sizes and fused from the deepest."""
    boxes, arrows = backbone("tokens", "(1 + h·w) × D")
    resizing = ("transposed conv, ×4", "transposed conv, ×2", "as it is", "3×3 conv, stride 2")
    sizes = ("4h × 4w", "2h × 2w", "h × w", "⌈h/2⌉ × ⌈w/2⌉")
    fused = ("8h × 8w", "4h × 4w", "2h × 2w", "h × w")
    stage = "neck.reassemble_stage.layers"
    for i, name in enumerate(MAPS):
        boxes[f"project{i}"] = Box(i, 2, "class token read out,\n1×1 conv", "D × h × w", f"{stage}.{i}.projection")
        boxes[f"resize{i}"] = Box(i, 3, resizing[i], f"D × {sizes[i]}", f"{stage}.{i}.resize")
        boxes[f"conv{i}"] = Box(i, 4, "3×3 conv", f"256 × {sizes[i]}", f"neck.convs.{i}")
        title = "residual block,\n×2, 1×1 conv" if i == 3 else "fusion, residual\nblocks, ×2, 1×1 conv"
        boxes[f"fusion{i}"] = Box(i, 5, title, f"256 × {fused[i]}", f"neck.fusion_stage.layers.{3 - i}")
        arrows += chain(name, f"project{i}", f"resize{i}", f"conv{i}", f"fusion{i}")
    head = "3×3 conv, batch norm, ReLU, dropout"
    boxes["head"] = Box(0, 6, head, "256 × 8h × 8w", "head.head.3", 2)
    boxes["classifier"] = Box(0, 7, "1×1 conv", "K × 8h × 8w", "head.head.4", 2)
    boxes["logits"] = Box(0, 8, "resized", "K × H × W", "logits", 2, "result")
    arrows += chain("fusion3", "fusion2", "fusion1", "fusion0", "head", "classifier", "logits")
    return Figure(boxes, arrows, "nnunetv2.model.model_dpt")


def unetr() -> Figure:
    """Branches of transposed convolutions into a U-Net's decoder."""
    boxes, arrows = backbone()
    widths, scales = (64, 128, 256, 512), (16, 8, 4, 2)
    for i, (name, width, scale) in enumerate(zip(MAPS, widths, scales, strict=True)):
        shape, times = f"{width} × {scale}h × {scale}w", "" if i == 3 else f"{4 - i} times:\n"
        title = f"{times}×2 transposed, 3×3 conv"
        boxes[f"branch{i}"] = Box(i, 2, title, shape, f"decoder.branches.{3 - i}")
        arrows.append((name, f"branch{i}"))
        if i < 3:
            title = "×2, concatenated,\ntwo 3×3 conv"
            boxes[f"stage{i}"] = Box(i, 3, title, shape, f"decoder.stages.{2 - i}")
            arrows.append((f"branch{i}", f"stage{i}"))
    boxes["last"] = Box(0, 4, "two 3×3 conv", "32 × 16h × 16w", "decoder.last", 2)
    image = "image_branch: true\nof the image: two 3×3 conv"
    boxes["image"] = Box(2, 4, image, "32 × H × W", "image_stem", 2, "option", "image")
    concatenated = "resized, concatenated, two 3×3 conv"
    boxes["join"] = Box(2, 5, concatenated, "32 × H × W", "image_fusion", 2, "option", "image")
    last = "1×1 conv, resized for patches of 14"
    boxes["logits"] = Box(0, 6, last, "K × H × W", "logits", 2, "result")
    arrows += [*chain("branch3", "stage2", "stage1", "stage0", "last", "logits"), *chain("image", "join", "logits")]
    arrows.append(("last", "join"))
    variants = {"plain": {}, "image": {"image_branch": True}}
    return Figure(boxes, arrows, "nnunetv2.model.model_unetr", variants)


def primus() -> Figure:
    """Projection and doublings, of one map or of four."""
    boxes, arrows = backbone()
    boxes[DEEPEST] = Box(3, 1, boxes[DEEPEST].title, "D × h × w", "features.-1", kind="features")
    for i, name in enumerate(MAPS[:3]):
        boxes[name] = Box(i, 1, boxes[name].title, "D × h × w", f"features.{i}", kind="features", variant="four")
    four, one = "multiscale: true\nconcatenated, 1×1 conv", "multiscale: false\n1×1 conv"
    boxes["four0"] = Box(0, 2, four, "3072 × h × w", "decoder.projection", 3, "option", "four")
    boxes["one0"] = Box(3, 3, one, "768 × h × w", "decoder.projection", 1, "option", "one")
    for variant, column, row, width, channels in (("four", 0, 3, 3, 3072), ("one", 3, 4, 1, 768)):
        for i in range(4):
            scale = 2 ** (i + 1)
            title = "transposed conv, ×2,\nlayer norm, GELU" if width == 1 else "transposed conv, ×2, layer norm, GELU"
            shape = f"{channels // scale} × {scale}h × {scale}w"
            source = f"decoder.patch_decoder.{i}"
            boxes[f"{variant}{i + 1}"] = Box(column, row + i, title, shape, source, width, "step", variant)
        title = "1×1 conv, resized for\npatches of 14" if width == 1 else "1×1 conv, resized for patches of 14"
        boxes[f"{variant}5"] = Box(column, row + 4, title, "K × H × W", "logits", width, "result", variant)
        arrows += chain(*(f"{variant}{i}" for i in range(6)))
    arrows += [*((name, "four0") for name in MAPS), (DEEPEST, "one0")]
    variants = {"one": {"embed_dim": 768}, "four": {"embed_dim": 768, "multiscale": True}}
    return Figure(boxes, arrows, "nnunetv2.model.primus", variants)


def linear() -> Figure:
    """A classifier of every patch."""
    boxes = {
        "vit": Box(0, 0, "image, normalised and padded → ViT", "C × H × W", "image", 2, "features"),
        "map": Box(0, 1, "map after the last block", "D × h × w", "features.-1", 2, "features"),
        "norm": Box(0, 2, "batch norm, dropout", "D × h × w", "head.1", 2),
        "classifier": Box(0, 3, "1×1 conv", "K × h × w", "head.2", 2),
        "logits": Box(0, 4, "resized", "K × H × W", "logits", 2, "result"),
    }
    return Figure(boxes, chain(*boxes), "nnunetv2.model.model_linear")


def query_prediction(row: float, left: float, names: tuple[str, ...]) -> tuple[dict[str, Box], Arrows]:
    """What is predicted from queries and patches, from a row and a column on: below the boxes `names`."""
    linear = "queries:\nlinear layer"
    boxes = {
        "classes": Box(left, row, linear, "Q × (K + 1)", "decoder.class_head"),
        "mlp": Box(left + 1, row, "queries: three\nlinear layers", "Q × D", "decoder.mask_head"),
        "map": Box(left + 2, row, "patches: twice ×2\ntransposed, 3×3 conv", "D × 4h × 4w", "decoder.upscale"),
        "masks": Box(left + 1, row + 1, "products", "Q × 4h × 4w", "queries.pred_masks", 2),
        "logits": Box(left, row + 2, "masks resized, summed by class", "K × H × W", "logits", 3, "result"),
    }
    arrows = [(name, part) for name in names for part in ("classes", "mlp", "map")]
    return boxes, [*arrows, ("mlp", "masks"), ("map", "masks"), ("masks", "logits"), ("classes", "logits")]


def eomt() -> Figure:
    """Queries in the ViT's last blocks."""
    boxes = {
        "vit": Box(0, 0, "image, normalised and padded → the ViT's first blocks", "C × H × W", "image", 3, "features"),
        "tokens": Box(0, 1, "tokens", "(P + h·w) × D", "backbone.blocks.2", 3, "features"),
        "queries": Box(0, 2, "learned queries beside them", "(Q + P + h·w) × D", "backbone.blocks.3:input", 3),
    }
    last = "the ViT's last blocks; in training, a query sees the patches of its mask"
    boxes["blocks"] = Box(0, 3, last, "(Q + P + h·w) × D", "backbone.blocks.3", 3, "features")
    norm = "the ViT's norm; in training before each of these blocks too"
    boxes["norm"] = Box(0, 4, norm, "(Q + P + h·w) × D", "backbone.norm", 3, "features")
    prediction, arrows = query_prediction(5, 0, ("norm",))
    return Figure(boxes | prediction, [*chain(*boxes), *arrows], "nnunetv2.model.model_eomt")


def pmt() -> Figure:
    """Tokens of four depths fused, and plain blocks on them with queries."""
    boxes, arrows = backbone("tokens", "(P + h·w) × D")
    for i, name in enumerate(MAPS):
        text = f"{boxes[name].title},\nbatch norm"
        projection = f"decoder.lateral_projections.{i}"
        boxes[name] = Box(i, 1, text, "(P + h·w) × D", f"{projection}:input", kind="features")
        boxes[f"fused{i}"] = Box(i, 2, "+ MLP, times a learned\nfactor per channel", "(P + h·w) × D", projection)
        arrows += chain(name, f"fused{i}", "queries")
    tokens = "(Q + P + h·w) × D"
    boxes["queries"] = Box(0, 3, "sum, learned queries beside it", tokens, "decoder.blocks.0:input", 4)
    masked = "six plain blocks; in training, a query sees the patches of its mask"
    boxes["blocks"] = Box(0, 4, masked, tokens, "decoder.blocks.5", 4)
    norm = "layer norm; in training before each of these blocks too"
    boxes["norm"] = Box(0, 5, norm, tokens, "decoder.decoder_norm", 4)
    prediction, predicting = query_prediction(6, 0.5, ("norm",))
    arrows += [*chain("queries", "blocks", "norm"), *predicting]
    return Figure(boxes | prediction, arrows, "nnunetv2.model.model_pmt")


FIGURES = {
    "upernet": upernet,
    "segformer": segformer,
    "dpt": dpt,
    "unetr": unetr,
    "primus": primus,
    "linear": linear,
    "eomt": eomt,
    "pmt": pmt,
}
