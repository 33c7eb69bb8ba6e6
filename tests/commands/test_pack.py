# SPDX-License-Identifier: Apache-2.0
"""The command `pack` as a site runs it: alone and under mpirun, killed, interrupted, and on broken disks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers import launch, sources
from tests.helpers import pictures as photos
from tests.helpers.end_to_end import starts
from tests.helpers.namespaces import broken
from tests.helpers.parallel.mpi import require, several_hosts

#: 400 and 40 pictures in shards of 16: 28 shards.
TRAIN, VAL, OPTIONS = 400, 40, ("--side", "96", "--shard-images", "16", "--name", "set")

AGAIN = "run the same command again: it goes on"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a source of pictures in folders."""
    return sources.as_folders(tmp_path_factory.mktemp("pack") / "source", photos.samples(TRAIN, VAL))


@pytest.fixture(scope="module")
def whole(source: Path) -> Path:
    """Return the set that one undisturbed packing makes of the source."""
    done = pack(source, source.parent / "whole", *OPTIONS)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    return source.parent / "whole"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "aiperf_mpi", "pack", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(launch.ROOT)}


def pack(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `pack` alone to its end."""
    return subprocess.run(
        command(*arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start `pack` alone."""
    return subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_shards(folder: Path, job: subprocess.Popen[str], count: int = 1) -> None:
    """Wait until a packing has finished some shards."""
    deadline = time.monotonic() + 100
    while len(list(folder.glob("*.h5"))) < count:
        assert time.monotonic() < deadline and job.poll() is None, "the packing has ended too early"
        time.sleep(0.005)


def same(one: Path, other: Path) -> bool:
    """Whether two folders have the same files with the same bytes."""
    content = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (one, other)
    ]
    return content[0] == content[1]


# -- what a person sees ----------------------------------------------------------------------------


def test_packing_is_told_in_one_line_and_is_sound(source: Path, whole: Path) -> None:
    again = pack(source, whole, *OPTIONS)
    assert again.returncode == 0 and "is packed already" in again.stderr
    size = sum(path.stat().st_size for path in whole.glob("*.h5")) / 1e6
    said = f"packed set: 400 pictures for train, 40 pictures for val, {size:.1f} MB, 0 "
    assert again.stdout.startswith(said), again.stdout
    checked = pack("--verify", whole)
    assert (checked.returncode, checked.stdout) == (0, "verified set: all 28 are right\n")
    described = pack("--info", whole)
    assert described.returncode == 0 and "train: 400 pictures in 25 shards" in described.stdout


def test_packing_needs_no_mpi(source: Path, whole: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['mpi4py'] = sys.modules['jax'] = None\n"
        "from aiperf_mpi.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, "pack", source, tmp_path / "set", *OPTIONS]
    done = subprocess.run(
        list(map(str, words)), env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert same(whole, tmp_path / "set")


WORDS: list[tuple[Sequence[str], str]] = [
    ((), "pack: it takes SRC DST, not 0 paths"),
    (("a",), "pack: it takes SRC DST, not 1 path"),
    (("--verify",), "pack: it takes DST, not 0 paths"),
    (("--info", "a", "b"), "pack: it takes DST, not 2 paths; see pack --help"),
    (("a", "b", "--side", "x"), "invalid int value"),
    (("a", "b", "--side", "5000"), "--side 5000: it must be within 8 and 4096"),
    (("a", "b", "--encoding", "png"), "--encoding png: it must be raw or jpeg"),
    (("/no/such/folder", "b"), "SRC: /no/such/folder: does not exist"),
    (("--verify", "/no/such/folder"), "DST: /no/such/folder: does not exist"),
    (("--info", "/usr"), "DST: /usr: there is no manifest.json"),
]


@pytest.mark.parametrize(("words", "text"), WORDS, ids=str)
def test_wrong_command_is_refused_in_one_line(words: Sequence[str], text: str, tmp_path: Path) -> None:
    done = subprocess.run(
        command(*words), env=environment(), capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr and done.stderr.count("\n") <= 2
    assert os.listdir(tmp_path) == []


def test_too_many_rejected_end_with_3_and_are_listed(tmp_path: Path) -> None:
    made = photos.samples(30, 10, 60)
    source = sources.as_folders(tmp_path / "source", made)
    (source / "train" / made[3].label / made[3].file).write_bytes(b"")
    few = pack(source, tmp_path / "set", "--max-rejected", 0)
    assert (few.returncode, few.stdout) == (3, "")
    assert f"rejected: train {made[3].name}: has no bytes" in few.stderr and "--max-rejected 1" in few.stderr
    unfinished = pack("--verify", tmp_path / "set")
    assert unfinished.returncode == 2 and "its packing is not finished" in unfinished.stderr
    more = pack(source, tmp_path / "set", "--max-rejected", 1)
    assert more.returncode == 0 and "1 picture rejected" in more.stdout


def test_verify_names_each_wrong_shard(source: Path, whole: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", whole, tmp_path / "set"], check=True, timeout=60)
    changed, short, gone = (tmp_path / "set" / f"train-{number:05d}.h5" for number in (2, 5, 7))
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    os.truncate(short, 40_000)
    gone.unlink()
    done = pack("--verify", tmp_path / "set")
    assert (done.returncode, done.stdout) == (3, "verified set: 3 of 28 shards are wrong\n")
    assert f"{changed}: its SHA-256 is" in done.stderr
    assert f"{short}: has 40000 bytes, but the manifest says {len(data)}" in done.stderr
    assert f"{gone}: there is no such file" in done.stderr


def test_manifest_that_was_changed_is_refused(whole: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", whole, tmp_path / "set"], check=True, timeout=60)
    path = tmp_path / "set" / "manifest.json"
    path.write_text(path.read_text().replace('"side": 96', '"side": 97'))
    done = pack("--verify", tmp_path / "set")
    assert done.returncode == 2 and "changed by hand" in done.stderr


def test_a_warning_of_pillow_is_neither_printed_nor_an_error(tmp_path: Path) -> None:
    made = photos.samples(12, 4, 60)
    source = sources.as_folders(tmp_path / "source", made)
    odd = photos.photographs()[0].resize((60, 40)).convert("P")
    odd.save(source / "train" / made[0].label / "odd.png", transparency=bytes(range(200)))
    words = [sys.executable, "-W", "error", *command(source, tmp_path / "set")[1:]]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("packed source: 13 pictures for train")
    assert done.stderr == f"aiperf_mpi: looks at {source}\n"


# -- ends in the middle ----------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [0, 1, pytest.param(3, marks=[pytest.mark.mpi, pytest.mark.full])])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.full)])
def test_killed_packing_goes_on_to_the_same_bytes(
    source: Path, whole: Path, tmp_path: Path, ranks: int, kills: int
) -> None:
    folder, draw = tmp_path / "set", random.Random(kills + ranks)
    words = ["-m", "aiperf_mpi", "pack", source, folder, *OPTIONS, "--workers", 2]
    for _ in range(kills):
        job = launch.start(ranks, list(map(str, words))) if ranks else start(*words[3:])
        deadline = time.monotonic() + 60
        before = len(list(folder.glob("*.h5")))
        # At a random moment from the start of the process, or of the work, or later.
        if draw.random() < 0.8:
            while job.poll() is None and len(list(folder.glob("*.h5"))) <= before < 26:
                assert time.monotonic() < deadline
                time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.3))
        launch.kill(job)
        job.communicate(timeout=60)
    done = launch.mpirun(ranks, list(map(str, words))) if ranks else pack(*words[3:])
    assert done.returncode == 0, done.stderr
    assert same(whole, folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_ends_a_packing_soon_and_cleanly(
    source: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "set"
    job = start(source, folder, *OPTIONS, "--workers", 1)
    wait_for_shards(folder, job)
    began = time.monotonic()
    job.send_signal(number)
    out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (128 + number, "")
    assert time.monotonic() - began < 10
    assert err.endswith(f"aiperf_mpi: {number.name}: the packing ends; {AGAIN}\n") and "Traceback" not in err
    left = [path.name for path in (folder / ".packing").iterdir()]
    assert not [name for name in left if name.endswith((".h5", ".tmp"))]
    assert pack(source, folder, *OPTIONS).returncode == 0 and same(whole, folder)


def test_second_packer_is_refused(source: Path, tmp_path: Path) -> None:
    job = start(source, tmp_path / "set", *OPTIONS, "--workers", 1)
    try:
        wait_for_shards(tmp_path / "set", job)
        job.send_signal(signal.SIGSTOP)
        second = pack(source, tmp_path / "set", *OPTIONS)
    finally:
        launch.kill(job)
        job.communicate(timeout=60)
    host = os.uname().nodename
    assert second.returncode == 2
    assert f"{tmp_path / 'set'}: process {job.pid} on host {host} packs into it" in second.stderr
    # The lock of a killed process holds nothing.
    assert pack(source, tmp_path / "set", *OPTIONS).returncode == 0


# -- broken disks ----------------------------------------------------------------------------------


def test_full_disk_is_told_and_the_packing_goes_on_after_it(
    source: Path, whole: Path, tmp_path: Path
) -> None:
    # Raw shards need 11.6 MiB. The check before the start is passed by JPEG, whose size is not known.
    place = tmp_path / "disk"
    place.mkdir()
    small = [f"mount -t tmpfs -o size=1m tmpfs {place}"]
    words = command(source, place / "set", *OPTIONS, "--encoding", "jpeg")
    done = broken(small, words, environment(), timeout=120)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "no space is left on the file system" in done.stderr and AGAIN in done.stderr
    assert "Traceback" not in done.stderr

    refused = broken(small, command(source, place / "set", *OPTIONS), environment(), timeout=120)
    assert refused.returncode == 2 and "GiB are free; make room" in refused.stderr


def test_limit_on_files_is_told_and_lifted(source: Path, whole: Path, tmp_path: Path) -> None:
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "-", *command(source, tmp_path / "set", *OPTIONS)]
    done = subprocess.run(limited, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "ulimit -f unlimited" in done.stderr and AGAIN in done.stderr
    assert pack(source, tmp_path / "set", *OPTIONS).returncode == 0 and same(whole, tmp_path / "set")


def test_read_only_folder_is_refused(source: Path, whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mounts = [f"mount -t tmpfs tmpfs {place}", f"mount -o remount,ro {place}"]
    done = broken(mounts, command(source, place / "set", *OPTIONS), environment())
    assert done.returncode == 2 and f"DST: {place}" in done.stderr and done.stderr.count("\n") == 1

    # A finished set is checked and described there.
    mounts = [f"mount --bind {whole} {place}", f"mount -o remount,ro,bind {place}"]
    for words in (("--verify", place), (source, place, *OPTIONS)):
        assert broken(mounts, command(*words), environment()).returncode == 0


def test_unreadable_picture_is_rejected_with_the_reason(tmp_path: Path) -> None:
    made = photos.samples(30, 10, 60)
    source = sources.as_folders(tmp_path / "source", made)
    closed = source / "train" / made[3].label / made[3].file
    closed.chmod(0)
    words = command(source, tmp_path / "set")
    if os.geteuid() == 0:
        # Root reads everything, unless it gives up the right to.
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--", *words]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"rejected: train {made[3].name}: may not be read by this user" in done.stderr


# -- under mpirun ----------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("mpi", "ranks"),
    [
        ("mpich", 3),
        pytest.param("mpich", 7, marks=pytest.mark.full),
        pytest.param("openmpi", 3, marks=pytest.mark.full),
    ],
)
def test_ranks_change_no_byte(source: Path, whole: Path, tmp_path: Path, mpi: str, ranks: int) -> None:
    words = ["-m", "aiperf_mpi", "pack", str(source), str(tmp_path / "set"), *OPTIONS]
    done = launch.mpirun(ranks, words, mpi=require(mpi))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("packed set: 400 pictures") and done.stdout.count("\n") == 1
    assert same(whole, tmp_path / "set")
    again = launch.mpirun(ranks, words, mpi=mpi)
    assert again.returncode == 0 and again.stderr.count("is packed already") == 1
    checked = launch.mpirun(2, ["-m", "aiperf_mpi", "pack", "--verify", str(tmp_path / "set")], mpi=mpi)
    assert (checked.returncode, checked.stdout) == (0, "verified set: all 28 are right\n")


@pytest.mark.mpi
def test_error_of_a_rank_ends_the_job_with_its_rank_and_host(source: Path, tmp_path: Path) -> None:
    # The folder of the second host is another one: its rank does not see the plan.
    hosts = several_hosts(require("mpich"), 2, 1)
    hide = (
        f"mount -t tmpfs tmpfs {tmp_path}; exec {sys.executable} -m aiperf_mpi pack {source} {tmp_path}/set"
    )
    show = f"exec {sys.executable} -m aiperf_mpi pack {source} {tmp_path}/set"
    script = f'if [ "$PMI_RANK" = 1 ]; then {hide}; else {show}; fi'
    job = subprocess.run(
        [
            "unshare",
            "-m",
            str(launch.launcher("mpich")),
            *hosts,
            "-n",
            "2",
            "unshare",
            "-m",
            "sh",
            "-c",
            script,
        ],
        env=launch.variables("mpich"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert job.returncode == 2, job.stderr
    assert "rank 1 on host h1: DST: " in job.stderr and "name a folder that all hosts share" in job.stderr


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_to_the_launcher_ends_all_ranks(
    source: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    require("mpich")
    words = ["-m", "aiperf_mpi", "pack", str(source), str(tmp_path / "set"), *OPTIONS, "--workers", "1"]
    job = launch.start(2, words)
    wait_for_shards(tmp_path / "set", job)
    job.send_signal(number)
    done = launch.finish(job, 60)
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.count(f"{number.name}: the packing ends; {AGAIN}") == 1
    assert launch.mpirun(2, words).returncode == 0 and same(whole, tmp_path / "set")


@pytest.mark.mpi
def test_signal_ends_ranks_that_wait_for_a_stopped_one(source: Path, whole: Path, tmp_path: Path) -> None:
    require("mpich")
    folder = tmp_path / "set"
    words = ["-m", "aiperf_mpi", "pack", str(source), str(folder), *OPTIONS, "--workers", "1"]
    job = launch.start(2, words)
    wait_for_shards(folder, job)
    starts.process_of(job, 0).suspend()
    # Rank 1 has every second of 28 shards, and waits for rank 0 after them.
    wait_for_shards(folder, job, 14)
    time.sleep(1)
    sent = time.monotonic()
    job.send_signal(signal.SIGTERM)
    done = launch.finish(job, 60)
    assert time.monotonic() - sent < 10 and done.returncode == 128 + signal.SIGTERM, done.stderr
    assert launch.mpirun(2, words).returncode == 0 and same(whole, folder)
