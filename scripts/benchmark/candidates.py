"""What is measured, how each is mounted, and the guard that holds a mount.

A candidate mounts layers under a fresh upper and stays in the foreground if it is a program, so that the daemon of a
mount is known by its pid. The guard unmounts and ends that process whatever happens, and never waits without a limit.
"""
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

# Seconds.
MOUNTED = 15
UNMOUNTED = 60
ENDED = 60


class Failed(Exception):
    """A workload that did not come to its end; the text says why."""


@dataclass(frozen=True)
class Stack:
    """The layers of a mount: names below the directory `base`, topmost first."""

    base: Path
    lowers: tuple[str, ...]
    volatile: bool = False

    @property
    def names(self) -> str:
        """As the kernel takes them from within `base`: 128 whole paths are more than a mount's one page of options."""
        return ":".join(self.lowers)

    @property
    def paths(self) -> str:
        return ":".join(str(self.base / name) for name in self.lowers)


@dataclass(frozen=True)
class Candidate:
    """One way to see the layers as one tree."""

    name: str
    label: str
    # (stack, upper, work, mountpoint) to the words of the command; None: the plain directory itself.
    command: Callable[[Stack, Path, Path, Path], list[str]] | None
    daemon: bool = True
    copies_up: bool = True
    ours: bool = False


def options(stack: Stack, upper: Path, work: Path, *more: str) -> str:
    words = [f"lowerdir={stack.names}", f"upperdir={upper}", f"workdir={work}"]
    return ",".join(words + (["volatile"] if stack.volatile else []) + list(more))


def plain() -> Candidate:
    return Candidate("plain", "plain directory", None, daemon=False, copies_up=False)


def kernel(rootless: bool) -> Candidate:
    # Within a user namespace the kernel keeps its notes in user.overlay.*.
    own = ("userxattr",) if rootless else ()

    def command(stack: Stack, upper: Path, work: Path, mountpoint: Path) -> list[str]:
        return ["mount", "-t", "overlay", "overlay", "-o", options(stack, upper, work, *own), str(mountpoint)]

    return Candidate("kernel", "kernel overlayfs", command, daemon=False)


def fuse_overlayfs(name: str, label: str, program: str) -> Candidate:
    def command(stack: Stack, upper: Path, work: Path, mountpoint: Path) -> list[str]:
        return [program, "-f", "-o", options(stack, upper, work), str(mountpoint)]

    return Candidate(name, label, command)


def mergerfs(program: str) -> Candidate:
    """It has branches and no copy-up: new files go to the first branch, and the others are not to be written."""

    def command(stack: Stack, upper: Path, work: Path, mountpoint: Path) -> list[str]:
        branches = [f"{upper}=RW"] + [f"{stack.base / name}=RO" for name in stack.lowers]
        chosen = "fsname=mergerfs,category.create=ff,minfreespace=0"
        return [program, "-f", "-o", chosen, ":".join(branches), str(mountpoint)]

    return Candidate("mergerfs", "mergerfs", command, copies_up=False)


def ours(program: str, transport: str, io: str) -> Candidate:
    def command(stack: Stack, upper: Path, work: Path, mountpoint: Path) -> list[str]:
        words = ["--transport", transport, "--io", io] + (["--volatile"] if stack.volatile else [])
        layers = ["--lower", stack.names, "--upper", str(upper), "--work", str(work)]
        return [program, "mount", "--foreground", *words, *layers, str(mountpoint)]

    special = "" if io == "auto" else f", {io}"
    suffix = "" if io == "auto" else f"-{io}"
    return Candidate(f"{transport}{suffix}", f"unionfs-rs ({transport}{special})", command, ours=True)


def is_mounted(mountpoint: Path) -> bool:
    """From mountinfo and not with stat: asking a hung mount hangs."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return any(line.split()[4] == str(mountpoint) for line in lines)


def version(words: list[str]) -> str:
    """The first line that a program says about itself with a number in it."""
    said = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    lines = [line.strip() for line in (said.stdout + said.stderr).splitlines()]
    # Debian's fuse-overlayfs names libfuse's helper first.
    lines = [line for line in lines if any(c.isdigit() for c in line) and not line.startswith("fusermount")]
    return lines[0] if lines else "unknown version"


@dataclass
class Mounted:
    """The guard of one mount; a context manager.

    `scratch` is emptied first: each mount has an upper of its own.
    """

    candidate: Candidate
    stack: Stack
    scratch: Path
    daemon: subprocess.Popen | None = None
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mountpoint = self.scratch / "mnt"
        self.root = self.mountpoint

    def __enter__(self) -> "Mounted":
        shutil.rmtree(self.scratch, ignore_errors=True)
        for name in ("upper", "work", "mnt"):
            (self.scratch / name).mkdir(parents=True)
        if self.candidate.command is None:
            self.root = self.stack.base / "merged"
            return self
        try:
            self.mount()
        except BaseException:
            self.end()
            raise
        return self

    def mount(self) -> None:
        words = self.candidate.command(self.stack, self.scratch / "upper", self.scratch / "work", self.mountpoint)
        log = self.scratch / "log"
        # A newer libmount hands options to fsconfig one by one, which takes 255 bytes of each.
        environment = os.environ | {"LIBMOUNT_FORCE_MOUNT2": "always"}
        with log.open("wb") as errors:
            started = subprocess.Popen(
                words, cwd=self.stack.base, env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
        self.daemon = started
        deadline = time.monotonic() + MOUNTED
        while not is_mounted(self.mountpoint):
            status = started.poll()
            if status not in (None, 0) or (status == 0 and self.candidate.daemon) or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()
                raise Failed("it does not mount: " + (said[-1] if said else f"status {status}, and not a word"))
            time.sleep(0.01)
        if not self.candidate.daemon:
            self.daemon = None
            started.wait(MOUNTED)
        # Some are in the mount table before they answer. In a process of its own, which can be given up.
        try:
            subprocess.run(["stat", self.mountpoint], stdout=subprocess.DEVNULL, check=True, timeout=MOUNTED)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise Failed(f"it mounts and does not answer: {error}") from None

    def rss(self) -> float:
        """MiB of the daemon's memory."""
        if self.daemon is None:
            raise Failed("there is no daemon")
        for line in Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise Failed("the daemon has ended")

    def abort(self) -> None:
        """Ends what a mount that hangs is waited for in: without its daemon, every request fails."""
        if self.daemon is not None:
            self.daemon.kill()

    def __exit__(self, *_: object) -> None:
        self.end()

    def unmount(self, *options: str) -> bool:
        """Whether nothing is mounted there afterwards. Given up where it hangs: the daemon's end frees it."""
        words = ["umount", *options, str(self.mountpoint)]
        try:
            subprocess.run(words, stderr=subprocess.DEVNULL, timeout=UNMOUNTED, check=False)
        except subprocess.TimeoutExpired:
            return False
        return not is_mounted(self.mountpoint)

    def end(self) -> None:
        deadline = time.monotonic() + UNMOUNTED
        while is_mounted(self.mountpoint) and not self.unmount():
            if time.monotonic() > deadline:
                self.complaints.append("it could not be unmounted, and was detached")
                self.abort()
                self.unmount("--lazy")
                break
            time.sleep(0.1)
        if self.daemon is not None:
            try:
                self.daemon.wait(ENDED)
            except subprocess.TimeoutExpired:
                self.complaints.append(f"its daemon did not end within {ENDED} s, and was killed")
                self.daemon.kill()
                self.daemon.wait(ENDED)
            if self.daemon.returncode == -signal.SIGSEGV:
                self.complaints.append("its daemon crashed")
            self.daemon = None
        shutil.rmtree(self.scratch, ignore_errors=True)
