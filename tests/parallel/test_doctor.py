# SPDX-License-Identifier: Apache-2.0
"""`doctor` under real launchers and without one, on this machine and on broken ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aiperf_mpi.launchers import LAUNCHER_PREFIXES
from tests.helpers import launch
from tests.helpers.namespaces import broken
from tests.helpers.parallel.mpi import PROGRAMS, require, several_hosts
from tests.helpers.slurm import slurm

pytestmark = pytest.mark.mpi

DOCTOR = ("-m", "aiperf_mpi", "doctor", "--json", "--preset", "demo")

#: Seconds in which a check of a machine must end: 20, and as many again for a machine with other work.
LONGEST = 40.0

#: Ranks of a machine with other work may wait longer for one another.
PATIENT = {"AIPERF_MPI_INIT_SECONDS": "60"}


class Told:
    """What `doctor --json` says."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        start = done.stdout.find("{")
        assert start >= 0, f"no object from {done.args}:\n{done.stdout}{done.stderr}"
        self.code, self.object = done.returncode, json.loads(done.stdout[start:].replace("\0", ""))
        assert self.object["exit_code"] == self.code and "Traceback" not in done.stderr
        assert self.object["seconds"] < LONGEST

    def of(self, subject: str) -> list[dict[str, Any]]:
        """Return the findings of a subject."""
        return [finding for finding in self.object["findings"] if finding["subject"] == subject]

    def bad(self) -> set[tuple[str, str]]:
        """Return subject and level of all findings that are not fine; without the state of this checkout."""
        found = {(finding["subject"], finding["level"]) for finding in self.object["findings"]}
        return {key for key in found if key[1] != "ok" and key[0] not in MACHINE}


#: Subjects that depend on the machine of the tests, as on its cores or on changes of the checkout.
MACHINE = ("program", "affinity", "memory")


def job(
    mpi: str,
    ranks: int,
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    launcher: Sequence[str] = (),
) -> Told:
    return Told(
        launch.mpirun(
            ranks,
            [*DOCTOR, *arguments],
            mpi=mpi,
            env=PATIENT | (env or {}),
            launcher_arguments=launcher,
            timeout=120,
        )
    )


def alone(*arguments: str | Path, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> Told:
    command = [str(part) for part in (*prefix, launch.python("mpich"), *DOCTOR, *arguments)]
    done = subprocess.run(
        command,
        env=launch.variables("mpich", env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Told(done)


# -- machines that are fine


def test_one_host_without_a_launcher(tmp_path: Path) -> None:
    told = alone("--output", tmp_path / "a" / "run")
    assert told.code == 0 and told.bad() == set()
    assert (told.object["ranks"], told.object["hosts"], told.object["launcher"]) == (0, 1, "none")
    assert {finding["subject"] for finding in told.object["findings"]} >= {
        "MPI",
        "versions",
        "program",
        "shared memory",
        "accelerators",
        "JAX",
        "output",
        "scratch",
        "data set",
        "wall time",
        "official run",
    }
    assert list(tmp_path.iterdir()) == []


def test_the_ranks_of_a_job(mpi: str, tmp_path: Path) -> None:
    told = job(mpi, 4, "--output", tmp_path / "run")
    assert told.code == 0 and told.bad() == set()
    (roles,) = told.of("roles")
    assert "rank 0 coordinates, rank 1 trains, ranks 2-3 generate: 1 node, 1 replica" in roles["text"]
    assert told.of("data set")[0]["ranks"] == "1" and told.of("versions")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mpi", ["mpich", pytest.param("openmpi", marks=pytest.mark.full)], indirect=True)
def test_ranks_on_several_hosts(mpi: str, tmp_path: Path) -> None:
    # On the second host time.time is 30 s ahead, and one of its packages has another version.
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, sys, time\n"
        "if socket.gethostname() == 'h1':\n"
        "    here = time.time\n"
        "    time.time = lambda: here() + 30\n"
        f"    sys.path.insert(0, {str(tmp_path / 'other')!r})\n"
    )
    other = tmp_path / "other" / "optax-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n")
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{launch.ROOT}"}
    told = job(mpi, 4, env=env, launcher=several_hosts(mpi, 2, 2))

    assert told.code == 2 and told.object["hosts"] == 2
    (clocks,) = told.of("clocks")
    assert clocks["level"] == "warn" and "h1 by +30.0 s" in clocks["text"]
    (versions,) = told.of("versions")
    assert versions["level"] == "fail" and "0.0.1 on ranks 2-3" in versions["text"]
    assert told.bad() - {("network", "warn"), ("network", "fail")} == {
        ("clocks", "warn"),
        ("versions", "fail"),
    }
    # Both hosts have written into the output's parent.
    assert told.of("output")[0]["level"] == "ok"


# -- machines that are broken


#: Commands that leave 8 MiB of shared memory.
SMALL = ("mount -t tmpfs -o size=8m tmpfs /dev/shm",)


@pytest.mark.full
def test_a_small_shared_memory(mpi: str) -> None:
    # 200,000 records of the history need more than 8 MiB.
    command = [launch.launcher(mpi), "-n", "3", launch.python(mpi), *DOCTOR]
    command += ["--set", "parallel.history_capacity=200000"]
    told = Told(broken(SMALL, command, launch.variables(mpi, PATIENT)))
    (found,) = told.of("shared memory")
    assert told.code == 2 and told.bad() == {("shared memory", "fail")}
    assert "/dev/shm has" in found["text"] and "mount -o remount,size=" in found["remedy"]


def test_a_control_group_that_limits_memory_and_a_small_shared_memory(mpich: str) -> None:
    # The labels of 700,050,000 images take 2.6 GiB, of which 1.2 GiB are allowed; the windows take 45 MiB.
    group = Path("/sys/fs/cgroup/memory/aiperf_mpi-doctor")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1200 * 2**20))
    except OSError as error:
        pytest.skip(f"no control group of memory can be made (version 1): {error.strerror}")
    enter = f"echo $$ > {group}/cgroup.procs"
    command = [launch.launcher(mpich), "-n", "3", launch.python(mpich), *DOCTOR]
    try:
        told = Told(
            broken(
                (*SMALL, enter),
                [*command, "--preset", "imagenet-synthetic", "--set", "data.train_images=700000000"],
                launch.variables(mpich, PATIENT),
            )
        )
    finally:
        group.rmdir()
    assert told.code == 2 and told.bad() == {("shared memory", "fail")}
    found = [finding for finding in told.of("memory") if finding["level"] == "fail"]
    assert len(found) == 1 and str(group) in found[0]["text"] and found[0]["remedy"]


@pytest.mark.parametrize(
    "command",
    [
        DOCTOR,
        pytest.param(("-m", "aiperf_mpi", "--preset", "demo", "--output", "run"), marks=pytest.mark.full),
    ],
)
def test_shared_memory_that_is_too_small_for_mpich_itself(
    mpich: str, command: Sequence[str], tmp_path: Path
) -> None:
    # In 1 MiB its initialisation ends a rank by SIGBUS, or waits for ever.
    started = ["env", "-C", tmp_path, launch.launcher(mpich), "-n", "3", launch.python(mpich), *command]
    begun = time.monotonic()
    done = broken(["mount -t tmpfs -o size=1m tmpfs /dev/shm"], started, launch.variables(mpich, PATIENT))
    assert done.returncode == 2 and time.monotonic() - begun < LONGEST, done.stderr
    words = done.stdout + done.stderr
    assert "/dev/shm has 1 MiB free, but MPICH takes 4 MiB for 3 ranks" in words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("change", "setting", "level", "words"),
    [
        # Names that do not resolve are no obstacle where an interface joins the hosts.
        ("true", "", "ok", "reach one another at"),
        ("test $n = 0 || ip link set ib-1 nomaster", "ib0", "fail", "cannot reach rank"),
        ("true", "ib9", "fail", "'ib9' is not an interface"),
    ],
)
def test_replicas_of_hosts_without_names(
    mpich: str, change: str, setting: str, level: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    programs = PROGRAMS / "replica"
    lab = [
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
        "--mount",
        programs / "two_networks",
        tmp_path / "hosts",
    ]
    if subprocess.run([*map(str, lab), "true", "true"], capture_output=True, timeout=60).returncode:
        pytest.skip("this machine does not allow network namespaces")
    ssh = ["-launcher", "ssh", "-launcher-exec", programs / "net_ssh", "-hosts", "h0:2,h1:1"]
    command = [*lab, change, launch.launcher(mpich), *ssh, "-localhost", "10.77.0.254", "-n", "3"]
    command += [launch.python(mpich), *DOCTOR, "--set", "parallel.trainers_per_replica=2"]
    command += ["--set", f"parallel.address={setting}"]
    env = {"FI_PROVIDER": "tcp", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_TCP_IFACE": "eth0", **PATIENT}
    done = subprocess.run(
        [str(part) for part in command],
        env=launch.variables(mpich, env),
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = Told(done)
    found = told.of("network")
    assert [one["level"] for one in found] == [level] and words in found[0]["text"], found
    assert told.code == (2 if level == "fail" else 0) and told.object["hosts"] == 2


@pytest.mark.parametrize(
    ("starter", "library"), [("openmpi", "mpich"), pytest.param("mpich", "openmpi", marks=pytest.mark.full)]
)
def test_the_launcher_of_another_mpi(starter: str, library: str) -> None:
    require(starter), require(library)
    command = [launch.launcher(starter), "-n", "3", launch.python(library), *DOCTOR]
    done = subprocess.run(
        [str(part) for part in command],
        env=launch.variables("openmpi"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = Told(done)
    assert told.code == 2 and told.bad() == {("MPI", "fail")}
    assert "to MPI each of them is alone" in told.of("MPI")[0]["text"]
    # One rank speaks.
    assert done.stdout.count('"doctor": 1') == 1


@pytest.mark.parametrize("mpi", ["mpich", pytest.param("openmpi", marks=pytest.mark.full)], indirect=True)
def test_no_mpi_library(mpi: str) -> None:
    env = {"MPI4PY_LIBMPI": "/nonexistent/libmpi.so"}
    for told in (alone(env=env), job(mpi, 2, env=env)):
        assert told.code == 2 and told.bad() == {("MPI", "fail")}
        found = told.of("MPI")[0]
        assert "/nonexistent/libmpi.so" in found["text"] and "[mpich]" in found["text"] + found["remedy"]


@pytest.mark.full
def test_a_layout_that_is_refused(mpich: str) -> None:
    told = job(mpich, 3, "--set", "parallel.trainers_per_replica=3")
    assert told.code == 2 and told.bad() == {("roles", "fail")}
    assert "do not make whole replicas" in told.of("roles")[0]["text"]


@pytest.fixture(scope="session")
def dead_server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library for LD_PRELOAD: file systems with `dead-server` in their paths tell their free space
    after 30 s, as a server of NFS that is down."""
    folder = tmp_path_factory.mktemp("hang")
    source, library = folder / "hang.c", folder / "hang.so"
    source.write_text(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <string.h>\n#include <unistd.h>\n"
        "#define HANG(name) int name(const char *path, void *out) { \\\n"
        '    if (strstr(path, "dead-server")) sleep(30); \\\n'
        "    return ((int (*)(const char *, void *))dlsym(RTLD_NEXT, #name))(path, out); }\n"
        "HANG(statvfs)\nHANG(statvfs64)\n"
    )
    command = ["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
    except OSError:
        pytest.skip("there is no C compiler")
    assert done.returncode == 0, done.stderr
    return library


def test_a_file_system_that_does_not_answer(dead_server: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dead-server"
    folder.mkdir()
    started = time.monotonic()
    told = alone("--output", folder / "run", env={"LD_PRELOAD": str(dead_server)})
    assert time.monotonic() - started < LONGEST
    assert told.code == 2 and told.bad() == {("output", "fail")}
    assert "no answer within" in told.of("output")[0]["text"]
    assert list(folder.iterdir()) == []


def test_a_signal_ends_the_job_and_leaves_nothing(mpich: str, dead_server: Path, tmp_path: Path) -> None:
    # The signal comes while rank 0 waits for the file system, which takes 3 s.
    folder = tmp_path / "dead-server"
    folder.mkdir()
    command = [*DOCTOR, "--output", folder / "a" / "run"]
    started = launch.start(3, command, mpi=mpich, env={"LD_PRELOAD": str(dead_server)})
    while not list(folder.glob("a/run/*")):
        time.sleep(0.02)
        assert started.poll() is None
    begun = time.monotonic()
    started.send_signal(signal.SIGTERM)
    done = launch.finish(started, 60)
    assert done.returncode == 5 and time.monotonic() - begun < 10
    lines = [line for line in done.stderr.splitlines() if line.startswith("aiperf_mpi: ")]
    assert len(lines) == 1 and lines[0].startswith("aiperf_mpi: rank 0 on host ") and "SIGTERM" in lines[0]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_check_without_a_launcher(
    number: signal.Signals, dead_server: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dead-server"
    folder.mkdir()
    command = [launch.python("mpich"), *DOCTOR, "--output", str(folder / "a" / "run")]
    env = launch.variables("mpich", {"LD_PRELOAD": str(dead_server)})
    started = subprocess.Popen(
        [str(part) for part in command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(folder.glob("a/run/*")):
        time.sleep(0.02)
        assert started.poll() is None
    begun = time.monotonic()
    started.send_signal(number)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 128 + number and time.monotonic() - begun < 10
    assert out == "" and err == f"aiperf_mpi: doctor: ended by {number.name}\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        # Two ranks of one host: the first one speaks.
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, True),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, False),
        ({"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1", "HYDI_CONTROL_FD": "7"}, True),
    ],
)
def test_a_rank_without_mpi_waits_for_rank_0_and_speaks_before_it_gives_up(
    environ: dict[str, str], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiperf_mpi import ending
    from aiperf_mpi.parallel import doctor, examination

    waited, ends = list[float](), list[str]()

    def end(code: int, text: str, where: str) -> None:
        ends.append(f"{where}: {text}")
        raise SystemExit(code)

    for name in (name for name in os.environ if name.startswith(LAUNCHER_PREFIXES)):
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(examination.time, "sleep", waited.append)
    monkeypatch.setattr(examination, "end_job", end)
    request = examination.Request(0.0, None, lambda: pytest.fail("read"), lambda found: pytest.fail("shown"))
    with pytest.raises(SystemExit, match="2"):
        examination.refuse_job(request, "no MPI library")
    assert len(ends) == told
    # Rank 0 shows what it has found after JAX_SECONDS, and gives up MPI_Init after INIT_SECONDS.
    spoken = waited[0] + ending._FIRST_SECONDS
    assert examination.JAX_SECONDS + 2 < spoken and waited[0] + ending._MOST_SECONDS < doctor.INIT_SECONDS


@pytest.mark.full
def test_a_rank_that_never_comes(mpi: str) -> None:
    # MPICH's launcher and Open MPI's start a third process, which is not one of MPI.
    command = [launch.launcher(mpi), "-n", "2", launch.python(mpi), *DOCTOR, ":", "-n", "1", "sleep", "60"]
    begun = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command], env=launch.variables(mpi), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and time.monotonic() - begun < 30
    assert "waits in MPI_Init for the other ranks" in done.stderr and "AIPERF_MPI_INIT_SECONDS" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("XLA_FLAGS", "--xla_no_such_flag=1", "xla_no_such_flag"),
        pytest.param("JAX_PLATFORMS", "nonsense", "nonsense", marks=pytest.mark.full),
    ],
)
def test_a_variable_of_jax_and_a_job_that_ends_too_soon(name: str, value: str, words: str) -> None:
    env = {name: value, "AIPERF_MPI_JOB_END": str(time.time() + 500)}
    told = alone("--time-limit", "600", "--set", "parallel.host_devices=0", env=env)
    assert told.code == 2 and told.bad() >= {("JAX", "fail"), ("wall time", "fail")}
    assert any(words in finding["text"] for finding in told.of("JAX"))


def test_an_unknown_preset_is_refused_once(mpich: str) -> None:
    done = launch.mpirun(3, [*DOCTOR[:3], "--preset", "demmo"], mpi=mpich, timeout=60)
    lines = [line for line in done.stderr.splitlines() if line.startswith("aiperf_mpi")]
    assert done.returncode == 2 and len(lines) == 1 and "did you mean 'demo'?" in lines[0]


@pytest.mark.full
def test_the_text_for_people_has_80_columns(mpich: str) -> None:
    done = launch.mpirun(3, [*DOCTOR[:3], *DOCTOR[4:]], mpi=mpich, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].startswith("aiperf_mpi") and "a run would start" in lines[-1]
    assert max(map(len, lines)) <= 80 and "\x1b" not in done.stdout


@pytest.mark.full
def test_ranks_of_slurm(mpich: str) -> None:
    with slurm(task_plugin="task/affinity") as cluster:
        env = {"PYTHONPATH": str(launch.ROOT)}
        command = [launch.python(mpich), *DOCTOR]
        told = Told(cluster.call(["srun", "--mpi=pmi2", "-n2", *command], env=env))
        assert told.code == 0 and told.object["launcher"] == "srun" and told.object["ranks"] == 2

        # Without PMI each rank is alone to MPI: one of them says so.
        done = cluster.call(["srun", "--mpi=none", "-n2", *command], env=env)
        told = Told(done)
        assert told.code == 2 and ("MPI", "fail") in told.bad()
        assert "to MPI each of them is alone" in told.of("MPI")[0]["text"]
        assert done.stdout.count('"doctor": 1') == 1 and "aiperf_mpi: " not in done.stderr
