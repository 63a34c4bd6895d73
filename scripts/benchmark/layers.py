#!/usr/bin/env python3
"""Makes the layers that scripts/bench measures on.

    layers.py OUT full|tiny [ROOTFS.tar]     needs root

OUT has, when it is there at all, all of it:

    l0      a Debian root
    l1      a package layer: new files in old directories, replaced files, whiteouts
    l2      an application layer: 100k small files, a flat directory of 100k, files to change, large files
    merged  what the three show as one plain directory, but for the files that are there to be changed
    deep    128 layers, 000 on top, with the same 4000 names however many of the lowest are taken
    million (with --million) a layer of a million files
    repo.git, x.tar    what is cloned and what is unpacked

Whoever measures is given all of it (scripts/bench). `tiny` has the same shape in a few hundred files and without a
Debian root: each workload can run on it, and no figure of it means anything.
"""
import argparse
import os
import random
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Size:
    """How much there is of everything."""

    package_files: int
    many_directories: int
    many_files: int
    flat: int
    append: int
    remove: int
    rename: int
    large: int  # MiB
    copied: int  # MiB, of the file that is copied up beside lookups
    deep_layers: int
    deep_files: int  # in each of 40 directories
    million_directories: int


SIZES = {
    "full": Size(3000, 100, 1000, 100_000, 5000, 10_000, 2000, 1024, 3072, 128, 100, 1000),
    "tiny": Size(30, 10, 10, 200, 40, 40, 40, 4, 64, 128, 5, 2),
}
DEEP_DIRECTORIES = 40
# What is unpacked, and what the repository holds: as far as the root has it.
UNPACKED = ("usr/include", "usr/lib/gcc", "usr/lib/python3.11", "usr/share/perl")
CLONED = ("usr/include", "usr/lib/python3.11")


def write_file(path: Path, size: int) -> None:
    path.write_bytes((random.randbytes(64) * (size // 64 + 1))[:size])


def run(*command: object, **options) -> None:
    subprocess.run([str(word) for word in command], check=True, stdin=subprocess.DEVNULL, **options)


def make_root(l0: Path, rootfs: str | None) -> None:
    l0.mkdir()
    if rootfs:
        run("tar", "-x", "-f", rootfs, "-C", l0, "--numeric-owner", "--exclude=./dev/*", "--exclude=./proc/*", "--exclude=./sys/*")
        return
    for d in range(20):
        directory = l0 / "usr/include" / f"d{d:02d}"
        directory.mkdir(parents=True)
        for f in range(10):
            write_file(directory / f"f{f:02d}.h", random.randint(64, 6000))


def plain_files_and_directories(top: Path) -> tuple[list[Path], list[Path]]:
    files, directories = [], []
    for directory, subdirectories, names in os.walk(top):
        subdirectories.sort()
        directories.append(Path(directory))
        for name in sorted(names):
            path = Path(directory, name)
            if stat.S_ISREG(path.lstat().st_mode):
                files.append(path)
    return files, directories


def make_package_layer(out: Path, size: Size) -> list[Path]:
    """Returns the files of l0 that are left for the next layer to hide, as seen from the root."""
    l0, l1 = out / "l0", out / "l1"
    files, directories = plain_files_and_directories(l0 / "usr")
    for i in range(size.package_files):
        directory = l1 / random.choice(directories).relative_to(l0)
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / f"l1-{i}", random.randint(100, 8000))
    changed = random.sample(files, size.package_files // 6)
    replaced, hidden = len(changed) * 3 // 5, len(changed) * 4 // 5
    for path in changed[:hidden]:
        copy = l1 / path.relative_to(l0)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path in changed[:replaced]:
            shutil.copy2(path, copy)
        else:
            os.mknod(copy, stat.S_IFCHR)
    return [path.relative_to(l0) for path in changed[hidden:]]


def make_application_layer(l2: Path, size: Size, hidden: list[Path]) -> None:
    for d in range(size.many_directories):
        directory = l2 / "srv/many" / f"d{d:03d}"
        directory.mkdir(parents=True)
        for f in range(size.many_files):
            write_file(directory / f"f{f:04d}.txt", random.randint(64, 6000))
    flat = l2 / "srv/flat"
    flat.mkdir()
    for i in range(size.flat):
        (flat / f"entry-{i:06d}").touch()
    for name, count in (("cu", size.append), ("del", size.remove), ("mv", size.rename)):
        for i in range(count):
            directory = l2 / "srv" / name / f"x{i % 20:02d}"
            directory.mkdir(parents=True, exist_ok=True)
            write_file(directory / f"g{i:05d}", random.randint(64, 16000))
    big = l2 / "srv/big"
    big.mkdir()
    block = random.randbytes(1 << 20)
    for name, mebibytes in (("f1g", size.large), ("g1g", size.large), ("g3g", size.copied)):
        with (big / name).open("wb") as file:
            for _ in range(mebibytes):
                file.write(block)
    for path in hidden:
        whiteout = l2 / path
        whiteout.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(whiteout, stat.S_IFCHR)


def make_merged(out: Path) -> None:
    merged = out / "merged"
    merged.mkdir()
    for layer in ("l0", "l1"):
        # (A Path would swallow the dot.)
        run("cp", "-a", "--remove-destination", f"{out / layer}/.", merged)
    # All of l2 but the large files: the one that is read is linked, the others are there to be changed.
    for path in (out / "l2").iterdir():
        if path.name != "srv":
            run("cp", "-a", "--remove-destination", "-T", path, merged / path.name)
    for path in (out / "l2/srv").iterdir():
        if path.name != "big":
            (merged / "srv").mkdir(exist_ok=True)
            run("cp", "-a", "-T", path, merged / "srv" / path.name)
    (merged / "srv/big").mkdir()
    os.link(out / "l2/srv/big/f1g", merged / "srv/big/f1g")
    for directory, _, names in os.walk(merged):
        for name in names:
            path = Path(directory, name)
            status = path.lstat()
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                path.unlink()


def make_deep(deep: Path, size: Size) -> None:
    """The lowest layer has all names, and each one above it replaces two in each directory."""
    for layer in range(size.deep_layers):
        height = size.deep_layers - 1 - layer
        for d in range(DEEP_DIRECTORIES):
            directory = deep / f"{layer:03d}" / f"d{d:02d}"
            directory.mkdir(parents=True)
            names = range(size.deep_files) if height == 0 else (2 * height, 2 * height + 1)
            for f in names:
                (directory / f"f{f % size.deep_files:03d}").write_bytes(b"x" * 100)


def make_million(million: Path, size: Size) -> None:
    for d in range(size.million_directories):
        directory = million / "million" / f"d{d:03d}"
        directory.mkdir(parents=True)
        for f in range(1000):
            (directory / f"f{f:03d}").touch()


def make_inputs(out: Path) -> None:
    unpacked, cloned = ([name for name in names if (out / "l0" / name).is_dir()] for names in (UNPACKED, CLONED))
    run("tar", "-cf", out / "x.tar", "-C", out / "l0", *unpacked)
    with tempfile.TemporaryDirectory(dir=out) as work:
        run("cp", "-a", *(out / "l0" / name for name in cloned), work)
        environment = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"}
        git = ("git", "-C", work, "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0")
        run(*git, "init", "-q", "-b", "main", env=environment)
        run(*git, "add", "-f", ".", env=environment)
        run(*git, "commit", "-q", "-m", "a tree to clone", env=environment)
        run("git", "clone", "-q", "--bare", work, out / "repo.git", env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("rootfs", nargs="?")
    parser.add_argument("--million", action="store_true")
    arguments = parser.parse_args()
    out, size = arguments.out, SIZES[arguments.size]
    random.seed(1)

    if not out.exists():
        # Published by rename: layers that were cut short are never taken for whole ones.
        part = out.with_name(out.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o755)
        make_root(part / "l0", arguments.rootfs)
        hidden = make_package_layer(part, size)
        make_application_layer(part / "l2", size, hidden)
        make_merged(part)
        make_deep(part / "deep", size)
        make_inputs(part)
        part.rename(out)
    if arguments.million and not (out / "million").exists():
        part = out / "million.part"
        shutil.rmtree(part, ignore_errors=True)
        make_million(part, size)
        part.rename(out / "million")


if __name__ == "__main__":
    main()
