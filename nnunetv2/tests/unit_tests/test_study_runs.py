"""The queue of a study, and the states of its runs, with a program of a moment in place of a training."""

import errno
import fcntl
import io
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.run import study_command, study_on_slurm
from nnunetv2.run.study_on_slurm import slurm_options
from nnunetv2.run.study_workers import cores_of, local_workers
from nnunetv2.study import training
from nnunetv2.study.comparison import comparison_of
from nnunetv2.study.config import StudyConfig
from nnunetv2.study.display import PlainDisplay, TerminalDisplay
from nnunetv2.study.local import run_locally
from nnunetv2.study.locked_command import inheritable_lock
from nnunetv2.study.progress import headline, read_progress, seconds_left
from nnunetv2.study.runs import Run, expand
from nnunetv2.study.slurm import TrainingJob, minutes_of
from nnunetv2.study.state import failure_of, forget_failure, is_locked, state
from nnunetv2.study.training_log import training_logs

TRAINING = """
import json, os, pathlib, sys, time
name = sys.argv[sys.argv.index("--name") + 1]
model = "nnUNetTrainer_vit__nnUNetPlans_" + name + "__2d"
folder = pathlib.Path(os.environ["nnUNet_results"]) / "Dataset900_Test" / model / ("fold_" + sys.argv[3])
print("started", *sys.argv[4:6], flush=True)
if name.endswith("fails"):
    sys.exit("train: error: no luck")
if name.endswith("sleeps"):
    time.sleep(60)
(folder / "validation").mkdir(parents=True)
(folder / "validation" / "summary.json").write_text(json.dumps({"foreground_mean": {"Dice": 0.5}}))
"""
LOG = """2026-01-01 10:00:00.1: Epochs: 4, save_every: 50 (epochs between checkpoints)
2026-01-01 10:00:01.1: Epoch 0 
2026-01-01 10:00:02.1: Pseudo dice [np.float32(0.25), np.float32(0.5)] 
2026-01-01 10:00:02.2: Epoch time: 30.5 s 
2026-01-01 10:00:03.1: Epoch 1 
"""  # noqa: W291 - as nnU-Net writes it


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    (tmp_path / "preprocessed" / "Dataset900_Test").mkdir(parents=True)
    monkeypatch.setattr(training, "TRAIN", (sys.executable, "-c", TRAINING))
    return StudyConfig(name="s", dataset=900, folds=[0], device="cpu", experiments=experiments("works", "fails"))


def experiments(*names: str) -> dict[str, dict[str, str]]:
    return {name: {"config": "upernet"} for name in names}


def nothing() -> None:
    pass


def test_a_failed_run_fails_alone_and_is_tried_again_only_when_it_is_asked_for(study: StudyConfig):
    runs = works, fails = expand(study)
    assert [state(run) for run in runs] == ["waiting", "waiting"]
    run_locally(runs, [{}, {}], nothing)
    assert [state(run) for run in runs] == ["finished", "failed"]
    assert failure_of(fails) == f"fails, fold 0, seed 0 failed (exit code 1: train: error: no luck); log: {fails.log}"
    logs = [run.log.read_text() for run in runs]
    run_locally(runs, [{}], nothing)
    assert [run.log.read_text() for run in runs] == logs  # nothing was started
    forget_failure(fails)
    run_locally(runs, [{}], nothing)
    assert fails.log.read_text() == 2 * logs[1] and works.log.read_text() == logs[0]


def test_a_run_with_a_checkpoint_is_resumed(study: StudyConfig):
    (run, _) = expand(study)
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint_latest.pth").touch()
    assert state(run) == "interrupted"
    run_locally([run], [{}], nothing)
    assert run.log.read_text() == "started --c --name\n"


def test_a_request_to_stop_that_comes_while_a_training_starts_stops_it(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
):
    def ask_to_stop_once_locked(run: Run) -> bool:
        if is_locked(run):
            os.kill(os.getpid(), signal.SIGTERM)
        return is_locked(run)

    monkeypatch.setattr(training, "is_locked", ask_to_stop_once_locked)
    study.experiments = experiments("sleeps", "waits")
    runs = expand(study)
    with pytest.raises(KeyboardInterrupt):
        run_locally(runs, [{}, {}], nothing)
    assert [state(run) for run in runs] == ["interrupted", "waiting"]


@pytest.mark.integration
def test_an_interrupted_study_stops_its_trainings(study: StudyConfig):
    study.experiments = experiments("sleeps")
    (run,) = expand(study)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_locally([run], [{}], nothing)
    assert state(run) == "interrupted"  # and not failed


def test_a_run_is_running_until_its_process_is_killed(study: StudyConfig):
    study.experiments = experiments("sleeps")
    (run,) = expand(study)
    process = training.start(run, {})
    assert state(run) == "running"
    run_locally([run], [{}], nothing)  # leaves it alone
    second = training.start(run, {})
    assert second.wait() == training.LOCKED
    training.conclude(run, training.LOCKED)
    assert state(run) == "running"
    process.kill()
    process.wait()
    assert state(run) == "interrupted"
    training.conclude(run, process.returncode)
    assert "killed by SIGKILL" in failure_of(run)


@pytest.mark.parametrize(
    ("job", "is_requeued"),
    [
        ("JobState=RUNNING Reason=None", True),  # before it is preempted, or by hand
        ("JobState=COMPLETING Reason=TimeLimit", True),
        ("JobState=COMPLETING Reason=None", False),  # cancelled, or requeued by Slurm
    ],
)
def test_a_job_whose_training_is_stopped_is_requeued_unless_slurm_ends_it(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, is_requeued: bool
):
    pytest.importorskip("submitit")
    monkeypatch.setattr(training, "TRAIN", (sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"))
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\n[ "$*" = "show job --oneliner 12" ] && echo "JobId=12 {job} Requeue=1"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    requests: list[int] = []
    former = signal.signal(signal.SIGUSR2, lambda number, _frame: requests.append(number))
    try:
        (run, _) = expand(study)
        TrainingJob(run, {})()
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert requests == [signal.SIGUSR2] * is_requeued
    assert state(run) == "interrupted"  # and not failed


def test_a_file_system_without_locks(study: StudyConfig, monkeypatch: pytest.MonkeyPatch):
    def lock(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    run, other = expand(study)
    other.lock.mkdir(parents=True)  # cannot be locked by whomever
    run_locally([other], [{}], nothing)
    assert f"(exit code 1: cannot lock {other.lock}: Is a directory)" in failure_of(other)
    run.lock.touch()
    monkeypatch.setattr(fcntl, "lockf", lock)
    with pytest.raises(ExperimentError, match=f"cannot tell whether {run.lock} is locked: No locks available"):
        state(run)
    with pytest.raises(OSError, match="No locks available"), inheritable_lock(str(run.lock)):
        pass


def test_every_worker_has_its_variables(study: StudyConfig, monkeypatch: pytest.MonkeyPatch):
    script = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.5)"
    monkeypatch.setattr(training, "TRAIN", (sys.executable, "-c", script))
    runs = expand(study)
    run_locally(runs, [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "5"}], nothing)
    assert [run.log.read_text().strip() for run in runs] == ["4", "5"]


def with_log(run: Run) -> Run:
    run.folder.mkdir(parents=True)
    (run.folder / "training_log_2026_1_1_10_00_00.txt").write_text(LOG)
    (run.folder / "checkpoint_latest.pth").touch()
    return run


def test_logs_are_in_the_order_of_their_dates(tmp_path: Path):
    names = [f"training_log_2026_1_{day}_10_00_00.txt" for day in (9, 10, 11)]
    for name in names:
        (tmp_path / name).touch()
    assert [log.name for log in training_logs(tmp_path)] == names


def test_runs_that_somebody_stopped_are_named(study: StudyConfig, capsys: pytest.CaptureFixture):
    (first, second) = expand(study)
    run_locally([first], [{}], nothing)
    with_log(second)
    assert study_command._tell_unfinished([first]) == 0 and study_command._tell_unfinished([first, second]) == 1
    told = capsys.readouterr().err
    assert f"{second.name} is not finished; the same command resumes it; log: {second.log}" in told


def test_progress_is_read_from_the_log(study: StudyConfig):
    first, second = expand(study)
    progress = read_progress(with_log(first))
    assert str(progress) == "interrupted  works, fold 0, seed 0: epoch 1 of 4, pseudo Dice 0.3750"
    assert progress.epoch_seconds == (30.5,)
    both = [progress, read_progress(second)]
    assert seconds_left(both, 1) == (3 + 4) * 30.5 and seconds_left(both[1:], 1) is None
    assert headline("s", both, 2) == "s: 0 of 2 runs finished, 1 interrupted, 1 waiting; about 2 min left"
    # resumed at the second epoch
    resumed = LOG.replace("Epoch 0", "Epoch 1").replace("Epoch 1 \n", "Epoch 2 \n", 2).replace("Epoch 2", "Epoch 1", 1)
    (first.folder / "training_log_2026_1_1_11_00_00.txt").write_text(resumed)
    assert read_progress(first).epochs_done == 2
    # resumed once more, before its first epoch; later only validated
    (first.folder / "training_log_2026_1_1_12_00_00.txt").write_text(LOG.splitlines()[0])
    assert read_progress(first).epochs_done == 2
    (first.folder / "checkpoint_final.pth").touch()
    assert read_progress(first).epochs_done == 4


def test_displays(study: StudyConfig):
    runs = [with_log(run) for run in expand(study)]
    plain, terminal = io.StringIO(), io.StringIO()
    display, drawing = (kind("s", runs, 1, out) for kind, out in ((PlainDisplay, plain), (TerminalDisplay, terminal)))
    display()
    display()
    assert plain.getvalue() == "s: 0 of 2 runs finished, 2 interrupted; about 3 min left\n"
    drawing()
    runs[1].failure.parent.mkdir()
    runs[1].failure.write_text("no luck")
    for shown in (display, drawing):
        shown._drawn_at = 0.0
        shown()
    assert plain.getvalue().splitlines()[1:] == [
        "failed       fails, fold 0, seed 0: epoch 1 of 4, pseudo Dice 0.3750",
        "s: 0 of 2 runs finished, 1 interrupted, 1 failed; about 2 min left",
    ]
    assert "\x1b[1A" in terminal.getvalue() and "  failed       fails" in terminal.getvalue()


def test_a_comparison_names_the_finished_runs_and_those_that_are_missing(study: StudyConfig):
    with pytest.raises(ExperimentError, match="no run of the study 's' is finished"):
        comparison_of(study)
    runs = expand(study)
    run_locally(runs, [{}, {}], nothing)
    study.baseline, study.tubular = "fails", [1]
    comparison = comparison_of(study)
    assert (comparison.dataset, comparison.configuration, comparison.baseline) == ("Dataset900_Test", "2d", "fails")
    assert [(m.experiment, m.fold, m.seed, m.folder) for m in comparison.members] == [("works", "0", 0, runs[0].folder)]
    assert comparison.missing == [failure_of(runs[1])] and comparison.groups is None and comparison.tubular == [1]


def test_report_names_its_page(study: StudyConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    written: list[tuple] = []
    monkeypatch.setattr("nnunetv2.study.report.write.write_report", lambda *arguments: written.append(arguments))
    monkeypatch.setattr(study_command, "read_study", lambda path: study)
    monkeypatch.setattr(study_command, "comparison_of", lambda study: study.name)
    study_command.run_study_entry(["report", "study.yaml", "-o", "a/report", "--processes", "3"])
    assert written == [("s", Path("a/report"), 3, None)]
    assert capsys.readouterr().out == "the report is a/report/report.html\n"
    with pytest.raises(SystemExit, match="2"):
        study_command.run_study_entry(["report", "study.yaml", "-o", "a/report", "--processes", "0"])
    assert "--processes must be at least 1, found 0" in capsys.readouterr().err


def test_half_a_summary_is_no_finished_run(study: StudyConfig):
    run, _ = expand(study)
    summary = run.folder / "validation" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"foreground_mean": {}})[:-3])
    (run.folder / "checkpoint_final.pth").touch()
    assert state(run) == "interrupted"


def test_a_summary_is_read_once(study: StudyConfig, monkeypatch: pytest.MonkeyPatch):
    (run, _) = expand(study)
    run_locally([run], [{}], nothing)
    assert read_progress(run).dice == 0.5
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", None)
        assert read_progress(run).dice == 0.5
    (run.folder / "validation" / "summary.json").write_text(json.dumps({"foreground_mean": {"Dice": 0.25}}))
    assert read_progress(run).dice == 0.25


def test_workers_on_the_cpu_share_its_cores(study: StudyConfig, monkeypatch: pytest.MonkeyPatch):
    for name in ("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        monkeypatch.delenv(name, raising=False)
    assert cores_of(16, "cpu") == {"OMP_NUM_THREADS": "14", "nnUNet_def_n_proc": "8", "nnUNet_n_proc_DA": "2"}
    assert cores_of(16, "cuda") == {"nnUNet_n_proc_DA": "12"}
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert cores_of(4, "cuda") == {}  # the user's own stays
    assert len(local_workers(study, None)) == 1 and len(local_workers(study, 3)) == 3
    with pytest.raises(ExperimentError, match="--workers must be at least 1, found 0"):
        local_workers(study, 0)


@pytest.mark.parametrize(
    ("time_limit", "minutes"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("2-0", 2880), ("2-12", 3600), ("1-1:30", 1530), ("1-1:30:01", 1531)],
)
def test_times_as_slurm_writes_them(time_limit: str, minutes: int):
    assert minutes_of(time_limit) == minutes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--time", "soon"), "--time takes .* found 'soon'"),
        (("--time", "0"), "--time must be at least 3 minutes, .* up to 150 s before their end, found 0"),
        (("--slurm", "time=soon"), "--slurm time takes .* found 'soon'"),
        (("--time", "5", "--slurm", "signal_delay_s=300"), "--time must be at least 7 minutes, .* found 5"),
        (("--slurm", "signal_delay_s=0"), "--slurm signal_delay_s takes a number of seconds, at least 1, found 0"),
        (("--cpus", "0"), "--cpus must be at least 1, found 0"),
        (("--gpus", "-1"), "--gpus must be at least 0, found -1"),
    ],
)
def test_wrong_options_of_slurm_are_refused(study: StudyConfig, arguments: tuple[str, ...], message: str):
    with pytest.raises(ExperimentError, match=message):
        options_of(study, *arguments)


def options_of(study: StudyConfig, *arguments: str) -> dict[str, Any]:
    return slurm_options(study, study_command.create_parser().parse_args(["run", "study.yaml", *arguments]))


def test_values_of_slurm_are_yaml_but_for_times(study: StudyConfig):
    options = options_of(study, "--slurm", "time=1:00:00", "--slurm", "mem_gb=1.5", "--slurm", "nodelist=[a, b]")
    assert (options["time"], options["mem_gb"], options["nodelist"]) == (60, 1.5, ["a", "b"])
    options = options_of(study, "--slurm", "timeout_min=90", "--slurm", "additional_parameters={begin: 12:00:00, x: 1}")
    assert options["time"] == 90 and options["additional_parameters"] == {"begin": "12:00:00", "x": 1}


def test_waiting_for_jobs_survives_a_controller_that_is_away_for_a_moment(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
):
    first, second = expand(study)
    first.log.parent.mkdir(parents=True)
    first.log.with_suffix(".job").write_text("12_0")  # by an earlier command
    answers = iter([{"12_0", "7"}, None, None, {"12_0"}, {"7"}])
    shown: list[int] = []
    monkeypatch.setattr(study_on_slurm, "queued_jobs", lambda: answer(next(answers)))
    monkeypatch.setattr(study_on_slurm, "SECONDS_BETWEEN_QUERIES", 0)
    study_on_slurm.wait_for_jobs([first, second], lambda: shown.append(1))
    assert len(shown) == 4 and next(answers, None) is None
    monkeypatch.setattr(study_on_slurm, "queued_jobs", lambda: answer(None))
    with pytest.raises(ExperimentError, match="Slurm does not answer; no longer waiting, but the jobs go on"):
        study_on_slurm.wait_for_jobs([first, second], nothing)


def answer(jobs: set[str] | None) -> set[str]:
    if jobs is None:
        raise ExperimentError("Slurm does not answer")
    return jobs


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run",), "stopped; the same command goes on from the last checkpoints"),
        (("run", "--on", "slurm"), "stopped; jobs that were submitted go on: nnUNetv2_vit_study status study.yaml"),
        (("status",), "stopped"),
        (("report", "-o", "report"), "stopped before the report was written; report is as it was"),
    ],
)
def test_every_command_says_what_its_end_means(
    arguments: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def interrupt(_path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study_command, "read_study", interrupt)
    command, *options = arguments
    with pytest.raises(SystemExit) as end:
        study_command.run_study_entry([command, "study.yaml", *options])
    assert end.value.code == 130
    assert capsys.readouterr().err == f"nnUNetv2_vit_study: {sentence}\n"


def test_a_training_on_all_cases_leaves_nothing_to_report_on(study: StudyConfig):
    study.folds = ["all"]
    with pytest.raises(ExperimentError, match="folds: all trains on every case, so that no validation is left"):
        comparison_of(study)
