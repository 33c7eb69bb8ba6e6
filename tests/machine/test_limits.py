# SPDX-License-Identifier: Apache-2.0
"""What limits leave to a process: made-up trees of control groups, real groups, and real limits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiperf_mpi.machine.cgroups import PROCESSES, groups_with_limit
from aiperf_mpi.machine.limits import available_bytes, levels, threads_now

GIB, NONE = 2**30, 9223372036854771712

V1 = "32 31 0:29 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 {top} /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """Write the files of the kernel below `root`; those of groups are named from /sys/fs/cgroup on."""
    own = root / "proc" / "self"
    own.mkdir(parents=True)
    (own / "cgroup").write_text(cgroup)
    (own / "mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def limits(root: Path) -> list[tuple[str, int, int]]:
    return [(group.name, group.limit, group.free) for group in groups_with_limit(root)]


def test_version_2_has_a_limit_at_every_level(tmp_path: Path) -> None:
    job = "system.slice/slurmstepd.scope/job_7"
    root = tree(
        tmp_path,
        f"0::/{job}/step_0/user/task_0\n",
        V2.format(top="/"),
        {
            f"{job}/step_0/user/task_0/memory.max": "max\n",
            f"{job}/step_0/memory.max": f"{4 * GIB}\n",
            f"{job}/step_0/memory.current": f"{GIB}\n",
            f"{job}/memory.max": f"{8 * GIB}\n",
            f"{job}/memory.current": f"{7 * GIB}\n",
            # 3 GiB of the 7 are files in the cache, which the kernel gives up: 8 - (7 - 3) = 4 GiB are free.
            f"{job}/memory.stat": f"anon 5\nactive_file {GIB}\ninactive_file {2 * GIB}\n",
        },
    )
    at = "/sys/fs/cgroup/" + job
    assert limits(root) == [(f"{at}/step_0", 4 * GIB, 3 * GIB), (at, 8 * GIB, 4 * GIB)]


def test_version_1_in_a_mixed_tree(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        "4:cpu,memory:/slurm/uid_0/job_7\n1:name=systemd:/\n0::/\n",
        V1.format(top="/") + V2.format(top="/").replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
        {
            "memory/slurm/uid_0/job_7/memory.limit_in_bytes": f"{NONE}\n",
            "memory/slurm/uid_0/memory.limit_in_bytes": f"{2 * GIB}\n",
            "memory/slurm/uid_0/memory.usage_in_bytes": f"{GIB}\n",
            "memory/slurm/uid_0/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
            "memory/memory.limit_in_bytes": f"{NONE}\n",
        },
    )
    assert limits(root) == [("/sys/fs/cgroup/memory/slurm/uid_0", 2 * GIB, 3 * GIB // 2)]


@pytest.mark.parametrize("path", ["/docker/ab", "/", "/../../outside", "/elsewhere"])
def test_a_container_sees_the_top_of_its_mount(tmp_path: Path, path: str) -> None:
    """A container's tree begins at its own group, and the process's path is told from inside or outside."""
    files = {"memory.max": f"{GIB}\n", "memory.current": "0\n"}
    root = tree(tmp_path, f"0::{path}\n", V2.format(top="/docker/ab"), files)
    assert limits(root) == [("/sys/fs/cgroup", GIB, GIB)]


def test_version_1_tells_a_limit_above_the_mount(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": f"{NONE}\n",
        "memory/memory.stat": f"hierarchical_memory_limit {GIB}\ntotal_rss {GIB // 4}\ntotal_shmem 0\n",
    }
    root = tree(tmp_path, "4:memory:/docker/ab\n", V1.format(top="/docker/ab"), files)
    assert limits(root) == [("above /sys/fs/cgroup/memory", GIB, 3 * GIB // 4)]


@pytest.mark.parametrize(
    ("cgroup", "mounts"),
    [("", ""), ("nonsense\n\x00:\n", "nonsense - \n"), ("0::/x\n", V2.format(top="/")), ("4:memory:/\n", "")],
)
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, cgroup: str, mounts: str) -> None:
    assert limits(tree(tmp_path, cgroup, mounts, {})) == []
    assert limits(tmp_path / "absent") == []


def test_a_file_of_the_group_may_hold_anything(tmp_path: Path) -> None:
    files = {"memory.max": "much\n", "memory.current": "-\n", "memory.stat": "a b c\nactive_file x\n"}
    assert limits(tree(tmp_path, "0::/\n", V2.format(top="/"), files)) == []


@pytest.fixture
def group() -> Iterator[Path]:
    """Make two nested groups of version 1; the outer one has a limit of 300 MiB."""
    top = Path("/sys/fs/cgroup/memory")
    outer = top / f"aiperf_mpi-test-{os.getpid()}"
    try:
        (outer / "inner").mkdir(parents=True)
        (outer / "memory.limit_in_bytes").write_text(str(300 * 2**20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield outer
    (outer / "inner").rmdir()
    outer.rmdir()


READ = "from aiperf_mpi.machine.limits import available_bytes; print(available_bytes())"


def test_the_limit_of_an_outer_group_is_seen(group: Path) -> None:
    join = f'echo $$ > {group}/inner/cgroup.procs && exec {sys.executable} -c "{READ}"'
    done = subprocess.run(["bash", "-c", join], capture_output=True, text=True, check=True, timeout=60)
    # 300 MiB less what a Python with psutil uses: some 15 MiB, and no more than 100.
    assert 200 * 2**20 < int(done.stdout) < 300 * 2**20


@pytest.mark.parametrize(("option", "name"), [("-v", "ulimit -v"), ("-d", "ulimit -d")])
def test_a_limit_of_the_process_is_seen(option: str, name: str) -> None:
    code = READ.replace("available_bytes", "levels").replace("levels())", "[l.name for l in levels()])")
    both = f"{READ}; {code}"
    command = f'ulimit {option} 800000; exec {sys.executable} -c "{both}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    free, names = done.stdout.splitlines()
    assert name in names
    assert 0 < int(free) < 800000 * 1024


def test_here_the_host_is_a_level() -> None:
    host = levels()[0]
    assert host.name == "the host" and 0 < host.free <= host.limit
    assert available_bytes() <= host.free


# -- processes and threads, CPU time


@pytest.mark.parametrize("version", [1, 2])
def test_processes_have_a_limit_at_every_level(tmp_path: Path, version: int) -> None:
    files = {
        "system.slice/unit.service/pids.max": "max\n",
        "system.slice/unit.service/pids.current": "17\n",
        "system.slice/pids.max": "30\n",
        "system.slice/pids.current": "19\n",
    }
    cgroup, mounts = "0::/system.slice/unit.service\n", V2.format(top="/")
    if version == 1:
        cgroup = "8:pids:/system.slice/unit.service\n4:memory:/\n0::/\n"
        mounts = V1.format(top="/").replace("memory", "pids")
        files = {f"pids/{name}": text for name, text in files.items()}
    groups = groups_with_limit(tree(tmp_path, cgroup, mounts, files), PROCESSES)
    at = "/sys/fs/cgroup/pids/" if version == 1 else "/sys/fs/cgroup/"
    assert [(one.name, one.limit, one.free) for one in groups] == [(f"{at}system.slice", 30, 11)]


def told(what: str, before: str) -> str:
    """Return what this expression of the module is in a process that a shell starts after `before`."""
    code = f"from aiperf_mpi.machine.limits import *; print({what})"
    command = f"{before} && exec {sys.executable} -c '{code}'"
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_a_real_limit_on_processes_is_seen() -> None:
    group = Path(f"/sys/fs/cgroup/pids/aiperf_mpi-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "pids.max").write_text("40")
    except OSError as error:
        pytest.skip(f"no control group of processes can be made (version 1): {error.strerror}")
    try:
        seen = told(
            "[(one.name, one.limit, one.free) for one in process_levels()]", f"echo $$ > {group}/cgroup.procs"
        )
    finally:
        group.rmdir()
    # The process itself, with the threads of its libraries.
    name, limit, free = eval(seen)[0]
    assert (name, limit) == (str(group), 40) and 20 <= free < 40


def test_a_users_limit_on_processes_counts_its_threads() -> None:
    if os.geteuid():
        pytest.skip("needs root, to become another user")
    code = (
        "import os, resource; from aiperf_mpi.machine.limits import *; os.setuid(54321); "
        "resource.setrlimit(resource.RLIMIT_NPROC, (50, 50)); "
        "print([(one.name, one.limit, one.free < 50) for one in process_levels()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "('ulimit -u', 50, True)" in done.stdout, done.stderr


def test_the_limit_on_cpu_seconds_is_seen() -> None:
    seen = told("[(one.name, one.limit, one.free) for one in cpu_levels()]", "ulimit -t 50")
    name, limit, free = eval(seen)[0]
    assert (name, limit) == ("ulimit -t", 50) and 30 <= free <= 50
    assert told("cpu_levels()", "true") == "()"


def test_threads_of_own_processes_count() -> None:
    before = threads_now()
    child = subprocess.Popen(["sleep", "30"])
    try:
        assert threads_now() == before + 1
    finally:
        child.kill()
        child.wait()


def test_a_host_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/meminfo")

    monkeypatch.setattr("psutil.virtual_memory", refuse)
    assert levels(tmp_path) == () and available_bytes(tmp_path) > 2**60
