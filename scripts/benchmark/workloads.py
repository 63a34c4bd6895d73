"""The workloads, in groups: each group has a fresh mount and a fresh upper.

The state that a workload needs is one of

    cold   the mount has just been made, and nobody has asked for these names or this data yet
    warm   what came before it in its group, which is done even where it is not measured, has asked for all of it
    dropped   the caches of the whole machine were dropped before it

and what lies below is in the page cache (but for `dropped`): cold means an unknown tree and not a slow disk. A figure
is in seconds, but where a workload says otherwise.
"""
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from candidates import Failed, Mounted, Stack


@dataclass(frozen=True)
class Sizes:
    """How often things are done."""

    create: int = 20_000
    random: int = 100_000
    write: int = 1024  # MiB


SIZES = {"full": Sizes(), "tiny": Sizes(create=200, random=200, write=4)}


@dataclass(frozen=True)
class Settings:
    """What a run was asked for, and where its things are."""

    data: Path  # the layers
    programs: Path  # ours, and the compiled workloads
    home: Path  # of the programs that are run: empty
    debs: Path | None  # packages to install
    toolchain: Path | None  # has bin/cargo and bin/rustc
    sizes: Sizes
    timeout: int
    rootless: bool
    drop_caches: bool
    million: bool


@dataclass
class Place:
    """A mount under measurement: where its trees are, and how commands are run and timed."""

    mounted: Mounted
    settings: Settings
    memo: dict[str, float] = field(default_factory=dict)
    # Of what the last command said that it had done.
    count: str | None = None

    def __post_init__(self) -> None:
        root = self.mounted.root
        self.root, self.usr, self.srv = root, root / "usr", root / "srv"
        # The plain directory is shared by all runs: what is new lies beside it, on the same file system.
        self.new = (self.mounted.scratch / "upper" if self.mounted.candidate.command is None else self.srv) / "new"

    def run(self, *words: object, **more: object) -> str:
        """Runs a command to its end and returns what it printed."""
        home = self.settings.home
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_GLOBAL": str(home / "gitconfig"), "GIT_CONFIG_NOSYSTEM": "1",
        }  # fmt: skip
        environment |= more.pop("env", {})
        process = subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True, env=environment, **more,
        )  # fmt: skip
        try:
            output, errors = process.communicate(timeout=self.settings.timeout)
        except subprocess.TimeoutExpired:
            # The daemon first: whoever waits for its answer cannot be ended before.
            self.mounted.abort()
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
            raise Failed(f"not done after {self.settings.timeout} s") from None
        except BaseException:
            self.mounted.abort()
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if process.returncode:
            said = [line for line in (errors.strip() or output.strip()).splitlines() if line]
            raise Failed("; ".join(said[-2:])[:300] if said else f"{words[0]} ended with status {process.returncode}")
        return output

    def ops(self, mode: str, path: Path, *more: object) -> float:
        seconds, self.count = self.run(self.settings.programs / "ops", mode, path, *more).split()[:2]
        return float(seconds)

    def clock(self, *words: object, **more: object) -> float:
        begin = time.monotonic()
        self.run(*words, **more)
        return time.monotonic() - begin

    def make_new(self) -> Path:
        self.new.mkdir(parents=True, exist_ok=True)
        return self.new


Run = Callable[[Place], float]


@dataclass(frozen=True)
class Workload:
    name: str
    what: str
    state: str  # cold, warm, dropped
    run: Run
    unit: str = "s"
    after: tuple[str, ...] = ()  # of the same group: done before it, measured or not
    # Why it is not for a candidate or a run: None where it is.
    obstacle: Callable[[Mounted, Settings], str | None] = lambda mounted, settings: None


@dataclass(frozen=True)
class Group:
    name: str
    kind: str  # the heading that it is reported under
    workloads: tuple[Workload, ...]
    stack: Callable[[Settings], Stack]
    warmed: tuple[str, ...] = ()  # below each layer: read before the mount is made
    copies_up: bool = False
    plain: bool = True  # whether the plain directory has what it works on


def walk(mode: str, *where: str) -> Run:
    return lambda place: place.ops(mode, place.root.joinpath(*where))


def shared(mode: str, processes: int, *where: str) -> Run:
    return lambda place: place.ops(mode, place.root.joinpath(*where), processes)


def three_layers(settings: Settings) -> Stack:
    return Stack(settings.data, ("l2", "l1", "l0"))


def three_volatile(settings: Settings) -> Stack:
    return Stack(settings.data, ("l2", "l1", "l0"), volatile=True)


def debian_root(settings: Settings) -> Stack:
    """Alone: the layers above it hide files without asking whether a program needs them."""
    return Stack(settings.data, ("l0",))


def lowest(count: int) -> Callable[[Settings], Stack]:
    return lambda settings: Stack(settings.data / "deep", tuple(f"{layer:03d}" for layer in range(128 - count, 128)))


# ---- reading -----------------------------------------------------------------------------------------------


def pair(mode: str, name: str, what: str, *where: str) -> tuple[Workload, Workload]:
    """The same walk on a fresh mount and again."""
    cold, warm = f"{name}_cold", f"{name}_warm"
    return (
        Workload(cold, what, "cold", walk(mode, *where)),
        Workload(warm, what, "warm", walk(mode, *where), after=(cold,)),
    )


def memory(place: Place) -> float:
    # A listing alone need not make an inode known.
    place.ops("stat", place.srv / "flat")
    return place.mounted.rss()


def no_daemon(mounted: Mounted, settings: Settings) -> str | None:
    return None if mounted.candidate.daemon else "no daemon"


METADATA = Group("metadata", "Reading", (
    *pair("stat", "stat", "lstat of every entry of /usr of a Debian root", "usr"),
    *pair("neg", "neg", "lookup of as many names that are not there", "usr"),
    Workload("xattr", "getxattr of an absent xattr of every entry of /usr", "warm", walk("xattr", "usr"), after=("stat_cold",)),
    Workload("lsR", "ls -lR /usr", "warm", lambda p: p.clock("ls", "-lR", p.usr), after=("stat_cold",)),
), three_layers, ("usr",))  # fmt: skip

MANY = Group("many", "Reading", (
    *pair("stat", "stat100k", "lstat of 100,000 files", "srv", "many"),
    *pair("list", "list100k", "names of a directory of 100,000", "srv", "flat"),
    Workload("rss_mb_200k", "memory of the daemon once it has told of 200,000 inodes", "warm", memory, "MiB",
             ("stat100k_cold", "list100k_cold"), no_daemon),
), three_layers, ("srv/many", "srv/flat"))  # fmt: skip

DATA = Group("data", "Reading", (
    *pair("read", "read10k", "10,000 small files opened and read", "srv", "del"),
    Workload("open10k_warm", "10,000 files opened and closed", "warm", walk("open", "srv", "del"), after=("read10k_cold",)),
    Workload("seqread1g_cold", "1 GiB read in order", "cold", walk("seqread", "srv/big/f1g")),
    Workload("seqread1g_warm", "1 GiB read in order", "warm", walk("seqread", "srv/big/f1g"), after=("seqread1g_cold",)),
    Workload("mmapread1g", "1 GiB read through a map", "warm", walk("mmapread", "srv/big/f1g"), after=("seqread1g_cold",)),
    Workload("randread4k_100k", "100,000 reads of 4 KiB at random", "warm",
             lambda p: p.ops("randread", p.srv / "big/f1g", p.settings.sizes.random), after=("seqread1g_cold",)),
), three_layers, ("srv/del", "srv/big/f1g"))  # fmt: skip


def clients(processes: int) -> Group:
    def both(mode: str, what: str, where: str) -> tuple[Workload, Workload]:
        run, cold = shared(mode, processes, "srv", where), f"{mode}{processes}_cold"
        return (
            Workload(cold, f"{what} by {processes} processes", "cold", run),
            Workload(f"{mode}{processes}_warm", f"{what} by {processes} processes", "warm", run, after=(cold,)),
        )

    stat = both("pstat", "lstat of 100,000 files", "many")
    read = both("pread", "10,000 small files read", "del")
    return Group(f"clients{processes}", "Several clients", stat + read, three_layers, ("srv/many", "srv/del"))


def layers(count: int) -> Group:
    name = f"layers{count}"
    word = "layer" if count == 1 else "layers"
    found = pair("stat", f"{name}_stat", f"lstat of 4,000 files in 40 directories, {count} {word}")
    absent = pair("neg", f"{name}_neg", f"lookup of 4,000 names that are not there, {count} {word}")
    return Group(name, "Layers", found + absent, lowest(count), ("",), plain=False)


def after_dropping(place: Place) -> float:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    return place.ops("stat", place.usr)


def may_drop(mounted: Mounted, settings: Settings) -> str | None:
    return "only the machine's root can drop caches" if settings.rootless else None


DROPPED = Group("dropped", "Reading", (
    Workload("stat_dropcaches", "lstat of every entry of /usr from the disk", "dropped", after_dropping, obstacle=may_drop),
), three_layers)  # fmt: skip

MILLION = Group("million", "Reading", (
    Workload("stat1m_cold", "lstat of a million files", "cold", walk("stat", "million")),
    Workload("rss_mb_1m", "memory of the daemon once it has told of a million inodes", "warm", lambda p: p.mounted.rss(),
             "MiB", ("stat1m_cold",), no_daemon),
), lambda settings: Stack(settings.data, ("million", "l0")), plain=False)  # fmt: skip


# ---- writing -----------------------------------------------------------------------------------------------


NEW = Group("new", "Writing", (
    Workload("create20k", "20,000 files of 1 KiB made", "cold",
             lambda p: p.ops("create", p.make_new(), p.settings.sizes.create)),
    Workload("read20k_new", "and read", "warm", lambda p: p.ops("read", p.new), after=("create20k",)),
    Workload("unlink20k_new", "and removed", "warm", lambda p: p.ops("unlink", p.new), after=("create20k",)),
    Workload("seqwrite1g", "1 GiB written in order", "cold",
             lambda p: p.ops("seqwrite", p.make_new() / "w", p.settings.sizes.write)),
    Workload("randwrite4k_100k", "100,000 writes of 4 KiB at random", "warm",
             lambda p: p.ops("randwrite", p.new / "w", p.settings.sizes.random), after=("seqwrite1g",)),
    Workload("rm1g", "a file of 1 GiB removed, until its space is free", "warm", lambda p: p.ops("rm", p.new / "w"), after=("seqwrite1g",)),
), three_layers)  # fmt: skip


COPY_UP = Group("copy-up", "Writing", (
    Workload("copyup5k", "a byte appended to each of 5,000 files of a lower layer", "cold", walk("append", "srv", "cu")),
    Workload("copyup1g", "a byte appended to a file of 1 GiB of a lower layer", "cold", walk("oneappend", "srv/big/g1g")),
    Workload("chmod_up", "chmod of 2,000 files of a lower layer", "cold", walk("chmod", "srv", "mv")),
    Workload("rename2k", "and their renaming", "warm", walk("rename", "srv", "mv"), after=("chmod_up",)),
    Workload("unlink10k_lower", "10,000 files of a lower layer removed", "cold", walk("unlink", "srv", "del")),
), three_layers, ("srv/cu", "srv/big/g1g", "srv/mv"), copies_up=True)  # fmt: skip

VOLATILE = Group("volatile", "Writing without waiting for the disk", (
    Workload("copyup5k_volatile", "copyup5k on a volatile mount", "cold", walk("append", "srv", "cu")),
    Workload("copyup1g_volatile", "copyup1g on a volatile mount", "cold", walk("oneappend", "srv/big/g1g")),
    Workload("create20k_volatile", "create20k on a volatile mount", "cold",
             lambda p: p.ops("create", p.make_new(), p.settings.sizes.create)),
), three_volatile, ("srv/cu", "srv/big/g1g"), copies_up=True)  # fmt: skip


def stall(place: Place) -> float:
    """One run gives four figures; the three others are looked up by their own workloads."""
    words = place.run(place.settings.programs / "ops", "stall", place.srv / "big/g3g", place.srv / "flat").split()
    for name, word in zip(("median", "p99", "longest"), words[2:]):
        place.memo[name] = float(word) * 1000
    return float(words[0])


def of_stall(name: str) -> Run:
    return lambda place: place.memo[name]


STALL = Group("stall", "Beside a long copy-up", (
    Workload("copyup3g", "copy-up of 3 GiB, while another process looks up a new name every millisecond", "cold", stall),
    Workload("lookup_in_copyup_p50", "median latency of these lookups", "cold", of_stall("median"), "ms", ("copyup3g",)),
    Workload("lookup_in_copyup_p99", "99th percentile of it", "cold", of_stall("p99"), "ms", ("copyup3g",)),
    Workload("lookup_in_copyup_max", "the longest of these lookups", "cold", of_stall("longest"), "ms", ("copyup3g",)),
), three_layers, ("srv/big/g3g",), copies_up=True)  # fmt: skip


# ---- programs ----------------------------------------------------------------------------------------------


def cargo_build(place: Place) -> float:
    environment = {
        "PATH": f"{place.settings.toolchain}/bin:{os.environ['PATH']}",
        "CARGO_HOME": str(place.settings.home / "cargo"), "CARGO_NET_OFFLINE": "true", "CARGO_TERM_COLOR": "never",
    }  # fmt: skip
    project = place.make_new() / "hello"
    begin = time.monotonic()
    place.run("cargo", "new", "-q", "--vcs", "none", project, env=environment)
    place.run("cargo", "build", "-q", "--offline", cwd=project, env=environment)
    return time.monotonic() - begin


def without_cargo(mounted: Mounted, settings: Settings) -> str | None:
    return None if settings.toolchain else "there is no cargo"


PROGRAMS = Group("programs", "Programs", (
    Workload("untar", "tar -x of headers and libraries", "cold",
             lambda p: p.clock("tar", "-xf", p.settings.data / "x.tar", "-C", p.make_new(), "--no-same-owner")),
    Workload("git_clone", "git clone of a local repository", "cold",
             lambda p: p.clock("git", "clone", "-q", "--no-hardlinks", p.settings.data / "repo.git", p.make_new() / "repo")),
    Workload("git_status", "git status in the clone", "warm",
             lambda p: p.clock("git", "-C", p.new / "repo", "status", "--short"), after=("git_clone",)),
    Workload("cargo_build", "cargo new and cargo build, offline", "cold", cargo_build, obstacle=without_cargo),
    Workload("rmrf", "rm -rf of all of these", "warm", lambda p: p.clock("rm", "-rf", p.new),
             after=("untar", "git_clone")),
), three_layers)  # fmt: skip


def apt_install(place: Place) -> float:
    """In a chroot of the mount: dpkg unpacks, renames, syncs and runs the packages' scripts."""
    root = place.root
    shutil.copytree(place.settings.debs, root / "tmp/debs")
    packages = sorted(f"/tmp/debs/{path.name}" for path in place.settings.debs.glob("*.deb"))
    bound = []
    try:
        for name in ("dev", "proc"):
            (root / name).mkdir(exist_ok=True)
            place.run("mount", "--rbind", f"/{name}", root / name)
            bound.append(root / name)
        inside = ("chroot", root, "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8")
        apt = ("apt-get", "install", "-qq", "-y", "--no-install-recommends", "-o", "APT::Sandbox::User=root")
        return place.clock(*inside, "DEBIAN_FRONTEND=noninteractive", *apt, *packages)
    finally:
        for path in reversed(bound):
            # Lazily, and so with what is mounted below it, which a user namespace cannot unmount alone.
            place.run("umount", "-l", path)


def without_packages(mounted: Mounted, settings: Settings) -> str | None:
    return None if settings.debs else "there is no Debian root, or its packages could not be fetched"


APT = Group("apt", "Programs", (
    Workload("apt_install", "apt-get install of jq, rsync, vim and what they need, in a chroot", "cold", apt_install,
             obstacle=without_packages),
), debian_root, ("var/lib/dpkg", "usr"), copies_up=True)  # fmt: skip


def groups(settings: Settings) -> list[Group]:
    chosen = [METADATA, MANY, DATA]
    chosen += [DROPPED] if settings.drop_caches else []
    chosen += [MILLION] if settings.million else []
    chosen += [clients(n) for n in (2, 4, 8)] + [layers(n) for n in (1, 8, 32, 128)]
    return chosen + [NEW, COPY_UP, VOLATILE, STALL, PROGRAMS, APT]


# The yardstick that the project's aims are given in, which has a mean of its own. There two processes are the first to
# walk the 100,000 files, in place of one.
CORE = frozenset(
    {workload.name for group in (METADATA, MANY, DATA, NEW, COPY_UP, PROGRAMS) for workload in group.workloads}
    - {"stat100k_cold"}
    | {"pstat2_cold"}
)
