"""Subsets of the training cases: nested, seeded, by whole groups."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.groups import read_groups
from nnunetv2.training.vit.training_cases import choose_cases, training_cases_of

CASES = [f"case_{i:02d}" for i in range(20)]
GROUPS = {case: f"patient_{i // 3}" for i, case in enumerate(CASES)}


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_a_smaller_subset_is_part_of_a_larger_one(groups: dict | None):
    subsets = [choose_cases(CASES, number, 5, groups) for number in range(3, len(CASES) + 1)]
    for smaller, larger in itertools.pairwise(subsets):
        assert set(smaller) <= set(larger)
    assert subsets[-1] == CASES == choose_cases(CASES, None, 5, groups)
    assert all(subset == sorted(subset) for subset in subsets)  # the order of the fold


def test_the_seed_decides_and_nothing_else():
    chosen = choose_cases(CASES, 6, 1)
    assert chosen == choose_cases(CASES, 6, 1) == sorted(choose_cases(CASES[::-1], 6, 1))
    assert len(chosen) == 6 and chosen != choose_cases(CASES, 6, 2)
    assert choose_cases(CASES, 6, None) == choose_cases(CASES, 6, 0)
    # a fold with one case less loses only this one
    left = choose_cases([case for case in CASES if case != chosen[0]], 6, 1)
    assert len(set(left) - set(chosen)) == 1
    assert len({tuple(choose_cases(CASES, 6, seed)) for seed in range(50)}) == 50


def test_every_process_chooses_the_same():
    code = "from nnunetv2.training.vit.training_cases import choose_cases; import json, sys\n"
    code += "print(json.dumps([choose_cases(json.loads(sys.argv[1]), 7, 3), 'torch' in sys.modules]))"
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(CASES)], capture_output=True, text=True, check=True, cwd="/"
    )
    assert json.loads(result.stdout) == [choose_cases(CASES, 7, 3), False]


def test_whole_groups_are_taken():
    for number in range(3, 21):
        chosen = choose_cases(CASES, number, 0, GROUPS)
        assert number - 3 < len(chosen) <= number
        taken = {GROUPS[case] for case in chosen}
        assert chosen == [case for case in CASES if GROUPS[case] in taken]


@pytest.mark.parametrize(
    ("number", "groups", "told"),
    [
        (21, None, "train.num_training_cases is 21, but the fold has only 20 training cases"),
        (
            2,
            dict.fromkeys(CASES, "a"),
            "train.num_training_cases is 2, but the first group, 'a', has 20 training cases",
        ),
        (4, {"case_00": "a"}, "train.training_groups has no group for 19 training cases, such as 'case_01'"),
    ],
)
def test_what_cannot_be_chosen_is_told(number: int, groups: dict | None, told: str):
    with pytest.raises(ExperimentError) as caught:
        choose_cases(CASES, number, 0, groups)
    assert str(caught.value) == told


def test_groups_are_read_from_a_table(tmp_path: Path):
    path = tmp_path / "groups.csv"
    path.write_text("\ufeffage,group,case\n30,a, x \n31,b,y\n30,a,x\n", encoding="utf-8")
    assert read_groups(path) == {"x": "a", "y": "b"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "needs a first line with the columns case, group, found []"),
        ("x,a\ny,b\n", "needs a first line with the columns case, group, found ['x', 'a']"),
        ("case,group\nx\n", "every line needs a case and its group, found case 'x', group ''"),
        ("case,group\nx,a\nx,b\n", "case 'x' is in two groups, 'a' and 'b'"),
    ],
)
def test_a_wrong_table_of_groups_is_told(text: str, told: str, tmp_path: Path):
    path = tmp_path / "groups.csv"
    path.write_text(text)
    with pytest.raises(ExperimentError) as caught:
        read_groups(path)
    assert told in str(caught.value) and str(path) in str(caught.value)


def test_the_cases_of_a_fold_are_those_of_nnunets_split(tmp_path: Path):
    folder = tmp_path / "nnUNetPlans_2d"
    folder.mkdir()
    for case in CASES:
        (folder / f"{case}.b2nd").touch()
        (folder / f"{case}_seg.b2nd").touch()
    assert training_cases_of(tmp_path, folder.name, "all") == CASES
    split = training_cases_of(tmp_path, folder.name, 1)
    assert len(split) == 16 and split != training_cases_of(tmp_path, folder.name, 2)
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    assert training_cases_of(tmp_path, folder.name, 0) == ["a"]
