# SPDX-License-Identifier: Apache-2.0
"""Files and names that must neither stall a command nor speak for it: arguments, and forged results."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.schema import TABLES

#: A line that a name with a line break would forge.
LIE = "AIPERF_MPI status: VALID"

#: The root's attributes that a forged result needs to be coherent.
HUGE = 10**9


# -- arguments -------------------------------------------------------------------------------------


def _socket(path: Path) -> None:
    # The name of a socket has at most 107 characters, and a test's folder may be longer.
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{descriptor}/{path.name}")
    os.close(descriptor)


def _sparse(path: Path, head: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(100 << 30)


def _deep_json(path: Path) -> None:
    path.write_text("[" * 500_000)


def arguments(folder: Path, result: Path) -> dict[str, str | bytes]:
    """Make the files of bad arguments in a folder, and return the arguments by a name for the test."""
    head = result.read_bytes()
    other = folder / "other"
    os.mkfifo(other)
    made: dict[str, Callable[[Path], object]] = {
        "fifo": os.mkfifo,
        "folder": Path.mkdir,
        "socket": _socket,
        "sparse": _sparse,
        "sparse result": lambda path: _sparse(path, head),
        "sparse superblock": lambda path: _sparse(path, head[:96]),
        "dangling link": lambda path: path.symlink_to("nothing"),
        "loop of links": lambda path: path.symlink_to(path.name),
        "link to a fifo": lambda path: path.symlink_to(other),
        "link to a device": lambda path: path.symlink_to("/dev/zero"),
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text(f"{LIE}\n" * 3),
        "random": lambda path: path.write_bytes(np.random.default_rng(1).bytes(100_000)),
        "signature alone": lambda path: path.write_bytes(head[:8]),
        "half a result": lambda path: path.write_bytes(head[: len(head) // 2]),
        "deep brackets": _deep_json,
        "many stages": lambda path: path.write_text('{"base": {"blocks": [1' + ",1" * 100_000 + "]}}"),
        "long number": lambda path: path.write_text('{"base": {"width": 1' + "0" * 1_000_000 + "}}"),
        "without tables": lambda path: h5py.File(path, "w").close(),
    }
    found: dict[str, str | bytes] = {}
    for number, (name, make) in enumerate(made.items()):
        path = folder / f"a{number}"
        make(path)
        found[name] = str(path)
    lying = os.fsencode(folder) + b"/x\n" + LIE.encode() + b"\nAIPERF_MPI reasons: \x1b[2J\xff.h5"
    Path(os.fsdecode(lying)).write_text("no result")
    return found | {
        "lying name": lying,
        "lying name of nothing": lying + b"\n" + LIE.encode(),
        "long name": str(folder / ("n" * 5000)),
        "long path": str(folder) + "/n" * 5000,
        "no name": "",
        "device": "/dev/zero",
        "memory": "/proc/self/mem",
        "kernel symbols": "/proc/kallsyms",
        "pipe": "/dev/stdin",
        "sysfs": "/sys/kernel/uevent_seqnum",
        "under a file": f"{result}/x",
        "dots": "/",
    }


# -- results ---------------------------------------------------------------------------------------


def _column(file: h5py.File, path: str, **options: Any) -> h5py.Dataset:
    """Replace a column by a dataset with the same attributes, made with other options."""
    about = {name: value for name, value in file[path].attrs.items() if name in ("description", "units")}
    kind = file[path].dtype
    del file[path]
    made = file.create_dataset(path, **({"dtype": kind} | options))
    made.attrs.update(about)
    return made


def _all_columns(file: h5py.File, table: str, rows: int, **options: Any) -> None:
    """Give all columns of a table this number of rows, none of which is stored."""
    for column in TABLES[table].columns:
        _column(file, f"{table}/{column.name}", shape=(rows,), **options)


def _document(file: h5py.File, path: str, text: str) -> None:
    file[path][()] = text


def _config(file: h5py.File, old: str, new: str) -> None:
    text = file["config/resolved_toml"].asstr()[()]
    assert old in text
    _document(file, "config/resolved_toml", text.replace(old, new))


def _ticks(file: h5py.File) -> None:
    _config(file, "tick = 2.0", "tick = 0.1")
    resultfile.set_attributes(file, {"tick": 0.1, "core_seconds": 999_999.0, "time_limit": 999_999.0})


def _morphs(file: h5py.File) -> None:
    # Each trial of 6 has 60,000 morphs of its own: each is valid alone.
    text = json.dumps([{"op": "wider", "a": 3}] * 60_000, separators=(",", ":"))
    for row in range(1, 6):
        file["trials/morphs"][row] = text


def _deep_morphs(file: h5py.File) -> None:
    text = json.dumps([{"op": "deeper", "a": 3, "kernel": 3}] * 3000, separators=(",", ":"))
    for row in range(1, 6):
        file["trials/morphs"][row] = text


def _one_string(file: h5py.File) -> None:
    """Write 3,000 rows that all point to one string of 1 MB in the file."""
    _column(file, "trials/arch_json", data=["x" * 1_000_000, *[""] * 2999])


def _chain(file: h5py.File) -> None:
    group = file
    for _ in range(3000):
        group = group.create_group("g")


def _base(file: h5py.File, **changes: Any) -> None:
    data = json.loads(file.attrs["base_json"])
    data["base"] |= changes
    resultfile.set_attributes(file, {"base_json": json.dumps(data)})


def _attributes(file: h5py.File) -> None:
    for number in range(20_000):
        file.attrs[f"a{number}"] = number


def _names(file: h5py.File) -> None:
    for number in range(20_000):
        file[f"g{number}"] = file["trials"]


def _external(file: h5py.File) -> None:
    file["trials/other"] = h5py.ExternalLink("/dev/zero", "/x")
    del file["epochs/lr"]
    file["epochs/lr"] = h5py.ExternalLink("/dev/stdin", "/x")


def _elsewhere(file: h5py.File) -> None:
    _column(file, "epochs/lr", shape=(10**6,), external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File) -> None:
    about = dict(file["epochs/lr"].attrs)
    del file["epochs/lr"]
    layout = h5py.VirtualLayout((HUGE,), "<f8")
    layout[:] = h5py.VirtualSource("/dev/zero", "x", (HUGE,))
    file.create_virtual_dataset("epochs/lr", layout).attrs["description"] = about["description"]


def _loop(file: h5py.File) -> None:
    file["trials/trials"] = file["trials"]
    file["system/root"] = file["/"]
    file["config/soft"] = h5py.SoftLink("/config/soft")


def _set(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: resultfile.set_attributes(file, {name: value})


def _rows(path: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[path][...] = value

    return change


#: Changes of a valid result that ask the judge for work, memory or waiting out of proportion to the file.
BOMBS: dict[str, Callable[[h5py.File], object]] = {
    "ten million ticks": _ticks,
    "a tick of 1e-300 s": _set("tick", 1e-300),
    "an endless core time": _set("core_seconds", float("inf")),
    "a core time of nan": _set("core_seconds", float("nan")),
    "a core time of 1e300 s": _set("core_seconds", 1e300),
    "compressed zeros": lambda f: _column(f, "epochs/lr", shape=(HUGE,), compression="gzip", chunks=(10**6,)),
    "columns never written": lambda f: _all_columns(f, "epochs", 10**12),
    "chunks never written": lambda f: _all_columns(f, "trials", 10**9, chunks=(10**6,)),
    "virtual dataset": _virtual,
    "external links": _external,
    "external storage": _elsewhere,
    "deep groups": _chain,
    "loops of links": _loop,
    "20,000 attributes": _attributes,
    "20,000 names": _names,
    "long attribute": _set("end_cause", "x" * 60_000),
    "long string": _one_string,
    "many morphs": _morphs,
    "deep morphs": _deep_morphs,
    "brackets as morphs": _rows("trials/morphs", "[" * 200_000),
    "long numbers": _rows("trials/ops", "9" * 1_000_000),
    "a long total": _set("total_ops", "9" * 60_000),
    "a long number of the series": _rows("score_series/cumulative_ops", "9" * 1_000_000),
    "negative epochs": _rows("epochs/epoch", -(2**31)),
    "times of nan": _rows("epochs/t_end", float("nan")),
    "times of inf": _rows("trials/t_start", float("inf")),
    "images without end": _rows("epochs/train_samples", 2**64 - 1),
    "ranks without end": _set("n_ranks", 2**31 - 1),
    "nodes without end": _set("n_nodes", 2**31 - 1),
    "replicas without end": _set("n_replicas", 2**31 - 1),
    "a negative number of devices": _set("n_devices", -(2**31)),
    "a wide network": lambda f: _base(f, width=10**9),
    "a long network": lambda f: _base(f, blocks=[1] * 5000),
    "a network of empty stages": lambda f: _base(f, blocks=[0] * 20_000),
    "a network of text": lambda f: _base(f, blocks="a" * 1000),
    "a number of a million digits": lambda f: _set("base_json", '{"base":{"width":1' + "0" * 60_000 + "}}")(
        f
    ),
    "brackets as network": _set("base_json", "[" * 60_000),
    "10 MB of configuration": lambda f: _document(f, "config/resolved_toml", "# x\n" * 2_500_000),
    "brackets as configuration": lambda f: _document(f, "config/resolved_toml", "a = " + "[" * 100_000),
    "a table of 100,000 dots": lambda f: _document(f, "config/resolved_toml", "[" + "a." * 100_000 + "a]"),
    "a table of 10,000 dots": lambda f: _document(f, "config/resolved_toml", "[" + "a." * 10_000 + "a]"),
    "rounds without end": lambda f: _config(f, "epochs = 8", "epochs = 999999999"),
    "brackets as inventory": lambda f: _document(f, "system/inventory_json", '{"nodes":' + "[" * 200_000),
    "10 MB of inventory": lambda f: _document(
        f, "system/inventory_json", json.dumps({"nodes": [{}] * 2_500_000})
    ),
    "many of one device": _rows("ranks/device", "999999999 x NVIDIA H100"),
    "many UUIDs": _rows("ranks/device_uuid", "GPU-1," * 200_000),
}


def bomb(name: str, result: Path, target: Path) -> Path:
    """Write a copy of a valid result with one of BOMBS, its hash and its numbers of rows made to fit."""
    shutil.copy(result, target)
    with h5py.File(target, "r+") as file:
        BOMBS[name](file)
    return target
