"""The data flow of `dinov3`'s Mask2Former, as boxes and arrows; a test compares every shape with the running network.

C channels of the image, K classes, D the width of the ViT, F that of the head, Q queries, H × W the image, padded to
multiples of 32; T tokens: those of the map at stride 16; N: of the maps at strides 8, 16 and 32.
"""

from drawing import Box, Figure

ADAPTER, HEAD = "segmentation_model.0", "segmentation_model.1"


def mask2former() -> Figure:
    """ViT and adapter, pixel decoder, transformer decoder."""
    boxes = {
        "image": Box(0, 0, "image, padded", "C × H × W", "image", 4, "features"),
        "convolutions": Box(0, 1, "convolutions: maps\nat strides 4, 8, 16, 32", "D × H/4 × W/4", f"{ADAPTER}.spm.fc1"),
        "vit": Box(1, 1, "ViT: the tokens of four blocks", "T × D", f"{ADAPTER}.backbone.norm:patches", 3),
    }
    extractors = "4 extractors, one per block, and two more:\nthe convolutions' tokens attend to the ViT's, conv FFN"
    boxes["tokens"] = Box(0, 2.1, extractors, "N × D", f"{ADAPTER}.interactions.3", 4)
    arrows = [("image", "convolutions"), ("image", "vit"), ("convolutions", "tokens"), ("vit", "tokens")]
    for i, stride in enumerate((4, 8, 16, 32)):
        title = "map at 8, doubled\n+ convolutions\n+ ViT" if i == 0 else f"map at {stride}\n+ ViT"
        boxes[f"map{i}"] = Box(i, 3.2, f"{title}, norm", f"D × H/{stride} × W/{stride}", f"{ADAPTER}.norm{i + 1}")
        arrows.append(("tokens", f"map{i}"))
    convolution = "1×1 conv, group norm"
    boxes["lateral"] = Box(0, 4.3, convolution, "F × H/4 × W/4", f"{HEAD}.pixel_decoder.lateral_convs.0")
    for i, stride in enumerate((8, 16, 32), start=1):
        source = f"{HEAD}.pixel_decoder.input_convs.{3 - i}"
        boxes[f"input{i}"] = Box(i, 4.3, convolution, f"F × H/{stride} × W/{stride}", source)
        arrows += [(f"map{i}", f"input{i}"), (f"input{i}", "encoder")]
    encoder = "6 layers of deformable attention among the three"
    boxes["encoder"] = Box(1, 5.2, encoder, "N × F", f"{HEAD}.pixel_decoder.encoder.encoder.layers.5", 3)
    features = "+ map at 8, 3×3 conv,\n1×1 conv"
    boxes["features"] = Box(0, 6.1, features, "F × H/4 × W/4", f"{HEAD}.pixel_decoder.mask_feature")
    queries = "queries: 9 layers on the maps at 32, 16 and 8 in turn:\nmasked attention, self-attention, FFN"
    boxes["queries"] = Box(1, 7.1, queries, "Q × F", f"{HEAD}.predictor.post_norm", 3)
    boxes["masks"] = Box(0, 8.2, "features · MLP(queries)", "Q × H/4 × W/4", "pred_masks", 2, "result")
    classes = "linear layer: classes, and no object"
    boxes["classes"] = Box(2, 8.2, classes, "Q × K+1", f"{HEAD}.predictor.class_embed", 2, "result")
    arrows += [("map0", "lateral"), ("lateral", "features"), ("encoder", "features"), ("encoder", "queries")]
    arrows += [("features", "masks"), ("queries", "masks"), ("queries", "classes")]
    return Figure(boxes, arrows, "dinov3.eval.segmentation.models")
