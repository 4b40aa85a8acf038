"""Which trained folds can be compared: those that every experiment has, validated on the same cases."""

from dataclasses import replace

from dinov3.errors import ExperimentError
from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.report.case_table import predictions_of

Run = tuple[str, int | None, int | None]  # fold, seed, number of training cases


def comparable(comparison: Comparison) -> Comparison:
    """Leave out the members that are not finished, and those whose counterparts are not; tell of them in `missing`.

    Raises:
        ExperimentError: nothing is finished, no fold is finished in all experiments, or the baseline is not.
    """
    finished = [member for member in comparison.members if (member.folder / "validation" / "summary.json").is_file()]
    missing = list(comparison.missing)
    missing += [f"{describe(member)}: not finished." for member in comparison.members if member not in finished]
    by_experiment: dict[str, set[Run]] = {}
    for member in finished:
        by_experiment.setdefault(member.experiment, set()).add(run_of(member))
    if not by_experiment:
        raise ExperimentError(f"no finished run: none of the {len(comparison.members)} runs has a validation summary")
    if comparison.baseline not in by_experiment:
        raise ExperimentError(f"the baseline {comparison.baseline!r} has no finished run: {first(missing)}")
    shared = set.intersection(*by_experiment.values())
    if not shared:
        raise ExperimentError(f"no fold is finished in all of {', '.join(by_experiment)}: {first(missing)}")
    kept = [member for member in finished if run_of(member) in shared]
    left_out = [describe(member) for member in finished if member not in kept]
    if left_out:
        missing.append(f"Finished, but left out because other experiments lack the same run: {'; '.join(left_out)}.")
    return replace(comparison, members=kept, missing=missing)


def run_of(member: Member) -> Run:
    """What a member shares with its counterparts in other experiments."""
    return member.fold, member.seed, member.num_training_cases


def describe(member: Member) -> str:
    """Name a member in a sentence."""
    seed = "" if member.seed is None else f", seed {member.seed}"
    size = "" if member.num_training_cases is None else f", {member.num_training_cases} training cases"
    return f"{member.experiment}, fold {member.fold}{seed}{size}"


def first(missing: list[str]) -> str:
    """The first of the sentences on missing runs."""
    return missing[0] if missing else "see their logs"


def check_cases(comparison: Comparison, file_ending: str) -> None:
    """Check that counterparts were validated on the same cases, and that these have groups if there are groups.

    Raises:
        ExperimentError: names two members and a case.
    """
    seen: dict[Run, tuple[Member, set[str]]] = {}
    for member in comparison.members:
        cases = set(predictions_of(member, file_ending))
        if not cases:
            raise ExperimentError(f"{describe(member)} has no predictions *{file_ending} in {member.folder}/validation")
        other, expected = seen.setdefault(run_of(member), (member, cases))
        if cases != expected:
            case = min(cases ^ expected)
            owner = member if case in cases else other
            raise ExperimentError(
                f"{describe(other)} and {describe(member)} were validated on different cases: {case!r} is one of "
                f"{owner.experiment} only"
            )
        without = sorted(cases - set(comparison.groups)) if comparison.groups is not None else []
        if without:
            raise ExperimentError(f"groups: the case {without[0]!r} has no group")
