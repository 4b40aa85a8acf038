"""A data set of colour images with one class, and its plans with no more in them than a derivation reads."""

DATASET_JSON = {
    "labels": {"background": 0, "vessel": 1},
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "file_ending": ".png",
}
CONFIGURATION = {
    "data_identifier": "nnUNetPlans_2d",
    "batch_size": 2,
    "patch_size": [64, 64],
    "batch_dice": False,
    "normalization_schemes": ["RGBTo01Normalization"] * 3,
    "architecture": {},
}
PLANS = {
    "dataset_name": "Dataset001_Test",
    "plans_name": "nnUNetPlans",
    "label_manager": "LabelManager",
    "configurations": {"2d": CONFIGURATION},
}
