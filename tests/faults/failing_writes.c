/* A disk that is full from the n-th operation on: preloaded, it fails what allocates space.

   Counted are operations on files below one folder. Operation n fails with ENOSPC; with `sticky`,
   every later one that needs space fails too, as on a disk that stays full. Renames and closes fail
   once: they need no space, but a network file system reports there what it could not store. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 65536

static char under[4096];
static long fail_at, count;
static int sticky;
static char tracked[FILES];

void fail_writes(const char *folder, long at, int stays_full) {
    strncpy(under, folder, sizeof under - 1);
    fail_at = at;
    sticky = stays_full;
    count = 0;
}

long count_writes(void) { return count; }

static int ours(const char *path) {
    return under[0] && path && strncmp(path, under, strlen(under)) == 0;
}

static int fails(int needs_space) {
    long number = __sync_add_and_fetch(&count, 1);
    if (fail_at && (number == fail_at || (sticky && needs_space && number > fail_at))) {
        errno = ENOSPC;
        return 1;
    }
    return 0;
}

static int is_tracked(int fd) { return fd >= 0 && fd < FILES && tracked[fd]; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                     \
    int name(const char *path, int flags, ...) {                                      \
        va_list list;                                                                  \
        va_start(list, flags);                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;      \
        va_end(list);                                                                  \
        int writes = ours(path) && (flags & O_ACCMODE) != O_RDONLY;                    \
        if (writes && (flags & O_CREAT) && fails(1)) return -1;                        \
        int fd = REAL(name)(path, flags, mode);                                        \
        if (fd >= 0 && fd < FILES) tracked[fd] = writes;                               \
        return fd;                                                                     \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                   \
    int name(int at, const char *path, int flags, ...) {                               \
        va_list list;                                                                  \
        va_start(list, flags);                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;      \
        va_end(list);                                                                  \
        int writes = ours(path) && (flags & O_ACCMODE) != O_RDONLY;                    \
        if (writes && (flags & O_CREAT) && fails(1)) return -1;                        \
        int fd = REAL(name)(at, path, flags, mode);                                    \
        if (fd >= 0 && fd < FILES) tracked[fd] = writes;                               \
        return fd;                                                                     \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    if (is_tracked(fd) && fails(1)) return -1;
    return REAL(write)(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int number) {
    if (is_tracked(fd) && fails(1)) return -1;
    return REAL(writev)(fd, parts, number);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    if (is_tracked(fd) && fails(1)) return -1;
    return REAL(pwrite)(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    if (is_tracked(fd) && fails(1)) return -1;
    return REAL(pwrite64)(fd, data, size, offset);
}

int fsync(int fd) {
    if (is_tracked(fd) && fails(0)) return -1;
    return REAL(fsync)(fd);
}

int close(int fd) {
    int failed = is_tracked(fd) && fails(0);
    if (fd >= 0 && fd < FILES) tracked[fd] = 0;
    int result = REAL(close)(fd);
    if (failed) errno = ENOSPC;
    return failed ? -1 : result;
}

int mkdir(const char *path, mode_t mode) {
    if (ours(path) && fails(1)) return -1;
    return REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    if (ours(from) && fails(0)) return -1;
    return REAL(rename)(from, to);
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    if (ours(from) && fails(0)) return -1;
    return REAL(renameat2)(a, from, b, to, flags);
}
