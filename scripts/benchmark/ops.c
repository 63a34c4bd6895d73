// The small workloads of scripts/bench, each with its own clock: neither the start of a shell nor that of an
// interpreter is in the figure.
//
//   ops MODE PATH [N]      prints SECONDS COUNT, and what the mode adds
//
// What is done to each entry of a tree (walks): stat, list, read, open, neg, xattr, append, chmod, rename, unlink.
// pstat and pread are stat and read by N processes, each with its share of the directories directly below PATH.
// create makes N files; seqread, mmapread, seqwrite (N MiB), randread and randwrite (N times 4 KiB) work on one file.
// rm removes a file, and waits until its space is free: some servers give it back after they have answered.
// stall PATH DIR appends to PATH, which copies it up, and meanwhile looks up names of DIR that nobody has asked for:
// adds the median, the 99th percentile and the longest of the lookups, in seconds.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 20, PAGE = 4096, DENTS = 64 << 10, DIRECTORIES = 20, LOOKUPS = 100000 };
static char *buffer;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static _Noreturn void die(const char *what, const char *path)
{
    fprintf(stderr, "%s %s: %s\n", what, path, strerror(errno));
    exit(1);
}

static int open_or_die(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0644);
    if (fd < 0)
        die("open", path);
    return fd;
}

// ---- names that are kept until a directory has been read ------------------------------------------------

struct names {
    char **name;
    size_t count, room;
};

static void keep(struct names *names, const char *name)
{
    if (names->count == names->room) {
        names->room = names->room ? names->room * 2 : 64;
        names->name = realloc(names->name, names->room * sizeof *names->name);
    }
    char *copy = strdup(name);
    if (!names->name || !copy)
        die("memory", name);
    names->name[names->count++] = copy;
}

static void drop(struct names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->name[i]);
    free(names->name);
}

// ---- what is done to an entry ------------------------------------------------------------------------------

enum mode { STAT, LIST, READ, OPEN, NEG, XATTR, APPEND, CHMOD, RENAME, UNLINK };
static const char *const mode_names[] = {"stat", "list", "read", "open", "neg", "xattr", "append", "chmod", "rename", "unlink"};

static void read_to_end(int fd, const char *name)
{
    ssize_t n;
    while ((n = read(fd, buffer, BUFFER)) > 0)
        ;
    if (n < 0)
        die("read", name);
}

// A regular file: opened, and read or appended to.
static bool use_file(int dir, const char *name, enum mode mode)
{
    int fd = openat(dir, name, (mode == APPEND ? O_WRONLY | O_APPEND : O_RDONLY) | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        if (errno == EACCES)
            return false;
        die("open", name);
    }
    if (mode == READ)
        read_to_end(fd, name);
    else if (mode == APPEND && write(fd, "x", 1) != 1)
        die("write", name);
    close(fd);
    return true;
}

// Returns how many entries this was, 0 or 1.
static long visit(int dir, const char *name, enum mode mode, unsigned char *type)
{
    struct stat st;
    char other[600];
    switch (mode) {
    case LIST:
        return 1;
    case STAT:
        if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW))
            die("stat", name);
        *type = IFTODT(st.st_mode);
        return 1;
    case NEG:
        snprintf(other, sizeof other, "%.200s.nope", name);
        if (!fstatat(dir, other, &st, AT_SYMLINK_NOFOLLOW) || errno != ENOENT)
            die("stat of an absent name", other);
        return 1;
    case XATTR:
        snprintf(other, sizeof other, "/proc/self/fd/%d/%s", dir, name);
        if (lgetxattr(other, "security.capability", buffer, 64) < 0 && errno != ENODATA)
            die("getxattr", name);
        return 1;
    case CHMOD:
        if (*type == DT_REG && fchmodat(dir, name, 0640, 0))
            die("chmod", name);
        return *type == DT_REG;
    case UNLINK:
        if (unlinkat(dir, name, 0))
            die("unlink", name);
        return 1;
    case RENAME:
        snprintf(other, sizeof other, "%.200s.mv", name);
        if (renameat(dir, name, dir, other))
            die("rename", name);
        return 1;
    default:
        return *type == DT_REG && use_file(dir, name, mode);
    }
}

// ---- trees ---------------------------------------------------------------------------------------------------

struct dent {
    uint64_t ino;
    int64_t off;
    unsigned short len;
    unsigned char type;
    char name[];
};

// Which of several processes this is: each takes every `of`th of the topmost directories.
struct share {
    long mine, of;
};

static long walk(int dir, enum mode mode, struct share share)
{
    struct names files = {0}, directories = {0};
    char *dents = malloc(DENTS);
    long count = 0, directory = 0, length;
    if (!dents)
        die("memory", "");
    while ((length = syscall(SYS_getdents64, dir, dents, DENTS)) > 0) {
        for (long at = 0; at < length;) {
            struct dent *d = (void *)(dents + at);
            at += d->len;
            if (!strcmp(d->name, ".") || !strcmp(d->name, ".."))
                continue;
            unsigned char type = d->type;
            struct stat st;
            if (type == DT_UNKNOWN && !fstatat(dir, d->name, &st, AT_SYMLINK_NOFOLLOW))
                type = IFTODT(st.st_mode);
            // A directory is not changed while it is read.
            if ((mode == UNLINK || mode == RENAME) && type != DT_DIR)
                keep(&files, d->name);
            else if (mode != UNLINK && mode != RENAME)
                count += visit(dir, d->name, mode, &type);
            if (type == DT_DIR && directory++ % share.of == share.mine)
                keep(&directories, d->name);
        }
    }
    if (length < 0)
        die("getdents", "");
    free(dents);

    for (size_t i = 0; i < files.count; i++)
        count += visit(dir, files.name[i], mode, &(unsigned char){DT_REG});
    for (size_t i = 0; i < directories.count; i++) {
        const char *name = directories.name[i];
        int below = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (below < 0) {
            if (errno == EACCES)
                continue;
            die("open", name);
        }
        count += walk(below, mode, (struct share){0, 1});
        close(below);
        if (mode == UNLINK && unlinkat(dir, name, AT_REMOVEDIR))
            die("rmdir", name);
    }
    drop(&files);
    drop(&directories);
    return count;
}

static void wait_for_all(void)
{
    int status;
    while (wait(&status) > 0)
        if (status)
            exit(1);
}

static void walk_by_processes(const char *path, enum mode mode, long processes)
{
    for (long i = 0; i < processes; i++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork", path);
        if (pid == 0) {
            walk(open_or_die(path, O_RDONLY | O_DIRECTORY), mode, (struct share){i, processes});
            _exit(0);
        }
    }
    wait_for_all();
}

// Files of 1 KiB in twenty new directories.
static void create(const char *path, long files)
{
    char name[PAGE];
    for (int i = 0; i < DIRECTORIES; i++) {
        snprintf(name, sizeof name, "%s/c%02d", path, i);
        if (mkdir(name, 0755))
            die("mkdir", name);
    }
    for (long i = 0; i < files; i++) {
        snprintf(name, sizeof name, "%s/c%02ld/f%06ld", path, i % DIRECTORIES, i);
        int fd = open_or_die(name, O_WRONLY | O_CREAT | O_EXCL);
        if (write(fd, buffer, 1024) != 1024)
            die("write", name);
        close(fd);
    }
}

// ---- one file --------------------------------------------------------------------------------------------------

static off_t size_of(int fd)
{
    struct stat st;
    if (fstat(fd, &st))
        die("fstat", "");
    return st.st_size;
}

static void read_mapped(int fd)
{
    off_t size = size_of(fd);
    volatile unsigned char *data = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        die("mmap", "");
    unsigned sum = 0;
    for (off_t at = 0; at < size; at += PAGE)
        sum += data[at];
    (void)sum;
}

static void write_in_order(int fd, long mebibytes)
{
    for (long i = 0; i < mebibytes * 8; i++)
        if (write(fd, buffer, BUFFER / 8) != BUFFER / 8)
            die("write", "");
    if (close(fd))
        die("close", "");
}

// xorshift64: the same places in every run.
static uint64_t random_number(void)
{
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void at_random(int fd, long times, bool writing)
{
    uint64_t pages = size_of(fd) / PAGE;
    for (long i = 0; i < times; i++) {
        off_t at = random_number() % pages * PAGE;
        if ((writing ? pwrite(fd, buffer, PAGE, at) : pread(fd, buffer, PAGE, at)) != PAGE)
            die(writing ? "pwrite" : "pread", "");
    }
}

static void append_one(const char *path)
{
    int fd = open_or_die(path, O_WRONLY | O_APPEND);
    if (write(fd, "x", 1) != 1)
        die("write", path);
    close(fd);
}

// ---- lookups beside a long copy-up ---------------------------------------------------------------------------

static int by_length(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void stall(const char *path, const char *dir)
{
    static double took[LOOKUPS];
    int fd = open_or_die(dir, O_RDONLY | O_DIRECTORY);
    double begin = now(), end = 0;
    pid_t pid = fork();
    if (pid < 0)
        die("fork", path);
    if (pid == 0) {
        append_one(path);
        _exit(0);
    }
    long count = 0;
    int status = 0;
    while (!end) {
        if (waitpid(pid, &status, WNOHANG) == pid) {
            end = now();
        } else if (count == LOOKUPS) {
            waitpid(pid, &status, 0);
            end = now();
        } else {
            // The names are known without a listing, which could bring their attributes along.
            char name[32];
            struct stat st;
            snprintf(name, sizeof name, "entry-%06ld", count);
            double before = now();
            if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) && errno != ENOENT)
                die("stat", name);
            took[count++] = now() - before;
            usleep(1000);
        }
    }
    if (status)
        exit(1);
    if (!count) {
        fprintf(stderr, "the copy-up ended before the first lookup\n");
        exit(1);
    }
    qsort(took, count, sizeof *took, by_length);
    printf("%.6f %ld %.6f %.6f %.6f\n", end - begin, count, took[count / 2], took[count * 99 / 100], took[count - 1]);
}

// ---- which of them -----------------------------------------------------------------------------------------------

static struct statvfs file_system(const char *path)
{
    struct statvfs seen;
    if (statvfs(path, &seen))
        die("statvfs", path);
    return seen;
}

static void rm(const char *path)
{
    enum { TRIES = 50000, PAUSE_US = 100 };
    char directory[PATH_MAX];
    struct stat file;
    if (lstat(path, &file))
        die("lstat", path);
    const char *slash = strrchr(path, '/');
    snprintf(directory, sizeof directory, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    struct statvfs before = file_system(directory);
    // Others may take some of it meanwhile.
    fsblkcnt_t wanted = (fsblkcnt_t)file.st_size / before.f_frsize / 10 * 9;
    if (unlink(path))
        die("unlink", path);
    for (int i = 0; i < TRIES && file_system(directory).f_bfree < before.f_bfree + wanted; i++)
        usleep(PAUSE_US);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: ops MODE PATH [N]\n");
        return 2;
    }
    const char *mode = argv[1], *path = argv[2];
    long n = argc > 3 ? atol(argv[3]) : 0, count = n;
    if (!(buffer = aligned_alloc(PAGE, BUFFER)))
        die("memory", path);
    memset(buffer, 'a', BUFFER);

    double begin;
    for (size_t i = 0; i < sizeof mode_names / sizeof *mode_names; i++) {
        if (!strcmp(mode, mode_names[i])) {
            int dir = open_or_die(path, O_RDONLY | O_DIRECTORY);
            begin = now();
            count = walk(dir, i, (struct share){0, 1});
            goto done;
        }
    }
    if (!strcmp(mode, "stall") && argc > 3) {
        stall(path, argv[3]);
        return 0;
    }
    int fd = -1;
    if (strstr(mode, "read") && *mode != 'p')
        fd = open_or_die(path, O_RDONLY);
    else if (!strcmp(mode, "seqwrite"))
        fd = open_or_die(path, O_WRONLY | O_CREAT | O_TRUNC);
    else if (!strcmp(mode, "randwrite"))
        fd = open_or_die(path, O_WRONLY);
    begin = now();
    if (!strcmp(mode, "pstat"))
        walk_by_processes(path, STAT, n);
    else if (!strcmp(mode, "pread"))
        walk_by_processes(path, READ, n);
    else if (!strcmp(mode, "create"))
        create(path, n);
    else if (!strcmp(mode, "seqread"))
        read_to_end(fd, path);
    else if (!strcmp(mode, "mmapread"))
        read_mapped(fd);
    else if (!strcmp(mode, "seqwrite"))
        write_in_order(fd, n);
    else if (!strcmp(mode, "randread") || !strcmp(mode, "randwrite"))
        at_random(fd, n, mode[4] == 'w');
    else if (!strcmp(mode, "oneappend"))
        append_one(path);
    else if (!strcmp(mode, "rm"))
        rm(path);
    else {
        fprintf(stderr, "unknown mode %s\n", mode);
        return 2;
    }
done:
    printf("%.6f %ld\n", now() - begin, count);
    return 0;
}
