# SPDX-License-Identifier: Apache-2.0
"""The archives of ILSVRC2012: members that are not pictures, and archives that are damaged or cut off."""

from __future__ import annotations

import io
import os
import re
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiperf_mpi.config import ConfigError
from aiperf_mpi.files import FileError
from aiperf_mpi.packing.source import SourceError, check_md5, open_source
from aiperf_mpi.packing.sources import ilsvrc
from aiperf_mpi.packing.sources.pictures import NO_PICTURE
from tests.helpers import sources
from tests.helpers.sources import SYNSETS, refusal_within_bounds

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
BLOCK = tarfile.BLOCKSIZE


def tar(*members: tuple[tarfile.TarInfo, bytes], **options: int) -> bytes:
    """Return an archive of members of any type."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as archive:  # type: ignore[call-overload]
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def with_train(root: Path, *members: tuple[tarfile.TarInfo, bytes], **options: int) -> Path:
    """Write whole archives, but with these members in the class SYNSETS[0]."""
    sources.as_archives(root, sources.samples())
    others = [(f"{label}.tar", sources.tar_of([(f"{label}.JPEG", b"x")])) for label in SYNSETS[1:]]
    (root / TRAIN).write_bytes(sources.tar_of([(f"{SYNSETS[0]}.tar", tar(*members, **options)), *others]))
    return root


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_format(kind: int, tmp_path: Path) -> None:
    names = [
        "plain.JPEG",
        "./dotted.JPEG",
        f"{SYNSETS[0]}/in_its_folder.JPEG",
        "f" * 60 + "/" + "x" * 90 + ".JPEG",
    ]
    if kind != tarfile.USTAR_FORMAT:
        names += ["schön.JPEG", "new\nline.JPEG", "y" * 240 + ".JPEG", "not\udcffutf8.JPEG"]
    with_train(
        tmp_path, *((info(name), name.encode("utf-8", "surrogateescape")) for name in names), format=kind
    )
    read = {one.name: one.read() for one in open_source(tmp_path).pictures["train"] if one.label == 0}
    spelled = {name: name for name in names} | {
        "./dotted.JPEG": "dotted.JPEG",
        f"{SYNSETS[0]}/in_its_folder.JPEG": "in_its_folder.JPEG",
        "new\nline.JPEG": "new\\nline.JPEG",
        "not\udcffutf8.JPEG": "not\\udcffutf8.JPEG",
    }
    assert read == {
        f"{SYNSETS[0]}/{spelled[name]}": name.encode("utf-8", "surrogateescape") for name in names
    }


def test_members_that_are_not_pictures_are_listed(tmp_path: Path) -> None:
    cases = {
        "link.JPEG": (info("link.JPEG", tarfile.SYMTYPE, "/x"), b"", "is a symbolic link in the archive"),
        "hard.JPEG": (info("hard.JPEG", tarfile.LNKTYPE, "good.JPEG"), b"", "is a hard link in the archive"),
        "fifo.JPEG": (info("fifo.JPEG", tarfile.FIFOTYPE), b"", "is a FIFO in the archive"),
        "device.JPEG": (info("device.JPEG", tarfile.CHRTYPE), b"", "is a device in the archive"),
        "folder.JPEG": (info("folder.JPEG", tarfile.DIRTYPE), b"", "is a folder with the name of a picture"),
        "etc/absolute.JPEG": (info("/etc/absolute.JPEG"), b"x", "has a name that leads out of the archive"),
        "../above.JPEG": (info("../above.JPEG"), b"x", "has a name that leads out of the archive"),
        "Thumbs.db": (info("Thumbs.db"), b"\xd0\xcf\x11\xe0", NO_PICTURE),
        "twice.JPEG": (info("twice.JPEG"), b"second", "is the second member of this name"),
    }  # fmt: skip
    members = [(info("good.JPEG"), b"good"), (info("twice.JPEG"), b"first"), (info("empty.JPEG"), b"")]
    members += [(member, data) for member, data, _ in cases.values()]
    members += [
        (info("folder", tarfile.DIRTYPE), b""),
        (info("._good.JPEG"), b"x"),
        (info(".DS_Store"), b"x"),
    ]
    source = open_source(with_train(tmp_path, *members))
    assert {one.name: one.reason for one in source.rejected} == {
        f"{SYNSETS[0]}/{name}": reason for name, (_, _, reason) in cases.items()
    }
    pictures = {one.name.partition("/")[2]: one for one in source.pictures["train"] if one.label == 0}
    assert set(pictures) == {"good.JPEG", "twice.JPEG", "empty.JPEG"}
    assert pictures["twice.JPEG"].read() == b"first"
    with pytest.raises(SourceError, match="^has no bytes$"):
        pictures["empty.JPEG"].read()
    assert source.description["hidden files left out"] == "2"


def test_hidden_folders_are_left_out_and_the_folder_itself_is_not_counted(tmp_path: Path) -> None:
    # As `tar cf x.tar .` writes them.
    members = [
        (info("./", tarfile.DIRTYPE), b""),
        (info("./a.JPEG"), b"a"),
        (info("./.thumbs", tarfile.DIRTYPE), b""),
        (info("./.thumbs/a.JPEG"), b"small"),
    ]
    source = open_source(with_train(tmp_path, *members))
    pictures = [one.read() for one in source.pictures["train"] if one.label == 0]
    assert pictures == [b"a"] and source.rejected == ()
    assert source.description["hidden files left out"] == "2"


def test_strange_members_of_the_archive_of_archives(tmp_path: Path) -> None:
    sources.as_archives(tmp_path, sources.samples())
    inner = sources.tar_of([("a.JPEG", b"a")])
    members = [(info(f"./{label}.tar"), inner) for label in SYNSETS]
    members += [
        (info("README"), b"x"),
        (info("link.tar", tarfile.SYMTYPE, "x"), b""),
        (info("._a.tar"), b"x"),
    ]
    (tmp_path / TRAIN).write_bytes(tar(*members))
    source = open_source(tmp_path)
    assert [(one.name, one.reason) for one in source.rejected] == [
        ("README", "is not the archive of a class"),
        ("link.tar", "is a symbolic link in the archive"),
    ]
    assert [one.name for one in source.pictures["train"]] == [f"{label}/a.JPEG" for label in SYNSETS]


@pytest.mark.parametrize("name", [TRAIN, VAL])
def test_an_archive_that_is_cut_off_is_refused_wherever_it_ends(name: str, tmp_path: Path) -> None:
    sources.as_archives(tmp_path, sources.samples(train=2, val=1))
    whole = (tmp_path / name).read_bytes()
    content = len(whole.rstrip(b"\0"))
    # At the borders of blocks members are lost without a trace but for the missing end mark.
    for size in {
        0,
        1,
        BLOCK,
        3 * BLOCK,
        content // BLOCK // 2 * BLOCK,
        content // BLOCK * BLOCK,
        content - 1,
    }:
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(
            ConfigError, match=f"^SRC: .*{name}: .*(byte .*cut off|damaged).*; download"
        ) as refused:
            open_source(tmp_path)
        assert str(refused.value).isprintable()


def test_a_damaged_header_inside_is_not_taken_for_the_end(tmp_path: Path) -> None:
    with_train(tmp_path, (info("a.JPEG"), b"a" * 10), (info("b.JPEG"), b"b" * 10), (info("c.JPEG"), b"c"))
    content = bytearray((tmp_path / TRAIN).read_bytes())
    at = content.index(b"b.JPEG")
    content[at + 3] ^= 1
    (tmp_path / TRAIN).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{SYNSETS[0]}.tar: byte {at}: a header is damaged; download"):
        open_source(tmp_path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    sources.as_archives(tmp_path, sources.samples())
    (tmp_path / VAL).write_bytes(b"\x1f\x8b\x08" + bytes(2000))
    with pytest.raises(ConfigError, match="byte 512: is not a tar archive, or damaged"):
        open_source(tmp_path)


@pytest.mark.parametrize("size", ["77777777777", "-0000000001", "\u00ff" * 4])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_sizes_in_headers_allocate_nothing(kind: bytes, size: str, tmp_path: Path) -> None:
    with_train(tmp_path, (info("a.JPEG", kind), b"a" * 10), (info("b.JPEG"), b"b" * 10))
    content = bytearray((tmp_path / TRAIN).read_bytes())
    at = content.index(b"a.JPEG")
    header = content[at : at + BLOCK]
    header[124:136] = size.encode("latin-1").ljust(12, b"\0")[:12]
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    content[at : at + BLOCK] = header
    (tmp_path / TRAIN).write_bytes(content)
    assert "SRC: " in refusal_within_bounds(lambda: open_source(tmp_path))


@settings(max_examples=60)
@given(st.data())
def test_changed_bytes_are_refused_or_read_within_a_bound(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = sources.as_archives(Path(folder), sources.samples(train=1, val=1))
        path = root / data.draw(st.sampled_from([TRAIN, VAL]))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            # Most changes hit a header.
            block = data.draw(st.integers(0, len(content) // BLOCK - 1)) * BLOCK
            content[block + data.draw(st.integers(0, BLOCK - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        refusal_within_bounds(lambda: open_source(root))


def test_an_archive_that_becomes_shorter_is_no_fault_of_a_picture(tmp_path: Path) -> None:
    source = open_source(sources.as_archives(tmp_path, sources.samples()))
    os.truncate(tmp_path / VAL, 1024)
    with pytest.raises(FileError, match="became shorter while it was read"):
        source.pictures["val"][-1].read()


def test_checksums_of_the_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(sources.as_archives(tmp_path, sources.samples()))
    assert [path.name for path in source.files] == list(ilsvrc.MD5)
    published = "published md5 of ILSVRC2012_img_train.tar"
    assert source.description[published] == "1d675b47d978889d74fa0da5fadfb00e"
    with pytest.raises(
        ConfigError, match=f"{TRAIN}: has the MD5 [0-9a-f]{{32}} instead of the published 1d675b4"
    ):
        check_md5(source)

    # The sums of these archives, as another program computes them.
    read: list[int] = []
    for name in ilsvrc.MD5:
        line = os.popen(f"md5sum '{tmp_path / name}'").read()
        monkeypatch.setitem(ilsvrc.MD5, name, re.match("[0-9a-f]{32}", line)[0])  # type: ignore[index]
    assert check_md5(source, read.append) == {f"md5 of {name}": its for name, its in ilsvrc.MD5.items()}
    assert sum(read) == sum(path.stat().st_size for path in source.files)
