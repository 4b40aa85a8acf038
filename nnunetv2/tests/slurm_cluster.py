"""A Slurm cluster of one node, this machine, with all its files in one folder; needs Debian's slurm-wlm and munge.

A requeued job starts again when its credentials have expired: here after 10 seconds, by default after 120.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobRequeue=1
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
SECONDS_TO_START = 30


def why_not() -> str | None:
    """Why no cluster can be started here; None: it can."""
    if os.geteuid() != 0:
        return "a Slurm cluster is started by root only"
    missing = [name for name in PROGRAMS if _program(name) is None]
    return f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)" if missing else None


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start a cluster, and end it.

    Args:
        folder: for all its files; one of a short path, because a socket's is limited.

    Yields:
        The environment variables that Slurm's commands need.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir()
    controller_port, node_port = _free_ports(2)
    host, cpus = socket.gethostname().partition(".")[0], os.cpu_count()
    values = {"host": host, "cpus": cpus, "controller_port": controller_port, "node_port": node_port}
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(folder=folder, **values))
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    variables = {"SLURM_CONF": str(config)}
    munge = ["--key-file", key, *_munge_files(folder)]
    with contextlib.ExitStack() as stack:
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
            stack.enter_context(_daemon(folder, variables, [str(part) for part in command]))
        _wait_until_idle(variables)
        yield variables


def _munge_files(folder: Path) -> Iterator[str]:
    for name in ("socket", "pid-file", "log-file", "seed-file"):
        yield from (f"--{name}", str(folder / f"munge.{name.removesuffix('-file')}"))


@contextlib.contextmanager
def _daemon(folder: Path, variables: dict[str, str], command: list[str]) -> Iterator[None]:
    program, *arguments = command
    with (folder / f"{program}.out").open("w") as output:
        options = {"env": {**os.environ, **variables}, "stdout": output, "stderr": output}
        process = subprocess.Popen([_program(program), *arguments], **options)
    try:
        if program == "munged":
            _wait_for(lambda: (folder / "munge.socket").exists())
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_until_idle(variables: dict[str, str]) -> None:
    def is_idle() -> bool:
        command, environment = ["sinfo", "--noheader", "--format=%t"], {**os.environ, **variables}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return result.stdout.strip() == "idle"

    _wait_for(is_idle)


def _wait_for(condition) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the Slurm cluster did not start")
        time.sleep(0.2)


if __name__ == "__main__":  # starts a cluster in a new folder, to try things by hand
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as place, slurm_cluster(Path(place)) as needed:
        print(" ".join(f"{name}={value}" for name, value in needed.items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(10**6)
