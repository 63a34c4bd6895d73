/* Loaded into pjdfstest and fsx by scripts/conformance, to make two things testable that the tools alone
 * cannot reach. Both are off unless their environment variable is set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* PRELOAD_CHAR_DEVICE: pjdfstest makes its character devices as 0:0, the one number that an overlay
 * refuses since it means "whiteout". As /dev/null's number, 1:3, those tests apply. */
int mknod(const char *path, mode_t mode, dev_t dev)
{
	int (*next)(const char *, mode_t, dev_t) = dlsym(RTLD_NEXT, "mknod");

	if (getenv("PRELOAD_CHAR_DEVICE") && S_ISCHR(mode) && dev == 0)
		dev = makedev(1, 3);
	return next(path, mode, dev);
}

static void unmap_leftovers(const char *file)
{
	/* fsx unmaps less than it maps when an offset is not at a page's start, and what is left keeps the
	 * mount busy. It never reads it again. */
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[8192];

	while (maps && fgets(line, sizeof line, maps)) {
		unsigned long begin, end;
		char *path = strchr(line, '/');

		line[strcspn(line, "\n")] = 0;
		if (path && strcmp(path, file) == 0 && sscanf(line, "%lx-%lx", &begin, &end) == 2)
			munmap((void *)begin, end - begin);
	}
	if (maps)
		fclose(maps);
}

/* PRELOAD_REOPEN_HOOK, PRELOAD_REOPEN_FILE, PRELOAD_REOPEN_EVERY: fsx closes its file and opens it again now
 * and then. Before every Nth such opening the hook runs, which makes of upper one more lower layer: the
 * file is a lower file from then on, and fsx's next write copies it up in the middle of its run. */
static void before_open(const char *path, int flags)
{
	static int openings;
	const char *file = getenv("PRELOAD_REOPEN_FILE"), *every = getenv("PRELOAD_REOPEN_EVERY"),
		   *hook = getenv("PRELOAD_REOPEN_HOOK");

	if (!file || !every || !hook || strcmp(path, file) != 0 || (flags & O_TRUNC))
		return;
	if (++openings % atoi(every) != 0)
		return;
	unmap_leftovers(file);
	if (system(hook) != 0)
		abort();
}

int open64(const char *path, int flags, ...)
{
	int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
	mode_t mode = 0;

	if (flags & (O_CREAT | __O_TMPFILE)) {
		va_list args;

		va_start(args, flags);
		mode = va_arg(args, mode_t);
		va_end(args);
	}
	before_open(path, flags);
	return next(path, flags, mode);
}
