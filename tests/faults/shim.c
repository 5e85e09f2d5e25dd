/* A file system that fails on order, for one process and its forks: LD_PRELOAD=shim.so FAULTS_CONTROL=FILE
 * FAULTS_BELOW=DIRECTORY[:DIRECTORY...] program
 *
 * Calls that change something below the directories fail with the errno that the control file holds, or kill the
 * process. The control file is mapped, so that whoever holds it arms and disarms the fault at once; its words are
 * `struct control`. Programs that the process starts are not affected: LD_PRELOAD is gone from the environment.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    int32_t armed;  /* 0: everything works */
    int32_t error;  /* the errno; 0: the process is killed instead */
    int32_t once;   /* only one call fails */
    int32_t skip;   /* so many calls work before */
    int32_t calls;  /* counted here: calls that could fail since it was armed */
    int32_t hits;   /* and those that did */
};

static volatile struct control *control;
static const char *below;

__attribute__((constructor)) static void set_up(void) {
    const char *path = getenv("FAULTS_CONTROL");
    below = getenv("FAULTS_BELOW");
    unsetenv("LD_PRELOAD");
    if (path == NULL || below == NULL) return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) control = map;
}

static int is_below(const char *path) {
    for (const char *start = below; *start != '\0';) {
        size_t length = strcspn(start, ":");
        if (strncmp(path, start, length) == 0 && (path[length] == '/' || path[length] == '\0')) return 1;
        start += length + (start[length] == ':');
    }
    return 0;
}

/* Whether this path, relative to `at`, is one of ours; a null path is `at` itself. */
static int concerns(int at, const char *path) {
    char link[64], whole[8192];
    if (path != NULL && path[0] == '/') return is_below(path);
    snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
    ssize_t length = readlink(link, whole, 4096);
    if (length < 0) return 0;
    snprintf(whole + length, sizeof whole - (size_t)length, "/%s", path == NULL ? "" : path);
    return is_below(whole);
}

enum { ROOM = 1, CHANGE = 2 };  /* needs room on the disk; changes anything else */

/* Whether a call of this kind on this file has to fail now; errno is set then. */
static int fails(int kind, int at, const char *path) {
    volatile struct control *now = control;
    if (now == NULL || !now->armed) return 0;
    int kept = errno;
    int error = now->error;
    if ((error == ENOSPC && kind != ROOM) || !concerns(at, path)) {
        errno = kept;
        return 0;
    }
    int call = __sync_fetch_and_add((int32_t *)&now->calls, 1);
    if (call < now->skip || (now->once && call > now->skip)) {
        errno = kept;
        return 0;
    }
    __sync_fetch_and_add((int32_t *)&now->hits, 1);
    if (error == 0) kill(getpid(), SIGKILL);
    errno = error;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int opening_fails(int at, const char *path, int flags) {
    if (!(flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))) return 0;
    int is_new = (flags & O_CREAT) && faccessat(at, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0;
    return fails(is_new ? ROOM : CHANGE, at, path);
}

static mode_t mode_of(int flags, va_list arguments) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

#define OPEN(name)                                                   \
    int name(const char *path, int flags, ...) {                     \
        va_list arguments;                                           \
        va_start(arguments, flags);                                  \
        mode_t mode = mode_of(flags, arguments);                     \
        va_end(arguments);                                           \
        if (opening_fails(AT_FDCWD, path, flags)) return -1;         \
        return REAL(name)(path, flags, mode);                        \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                 \
    int name(int at, const char *path, int flags, ...) {             \
        va_list arguments;                                           \
        va_start(arguments, flags);                                  \
        mode_t mode = mode_of(flags, arguments);                     \
        va_end(arguments);                                           \
        if (opening_fails(at, path, flags)) return -1;               \
        return REAL(name)(at, path, flags, mode);                    \
    }
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

ssize_t write(int fd, const void *data, size_t size) {
    return fails(ROOM, fd, NULL) ? -1 : REAL(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *data, int count) {
    return fails(ROOM, fd, NULL) ? -1 : REAL(writev)(fd, data, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return fails(ROOM, fd, NULL) ? -1 : REAL(pwrite)(fd, data, size, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    return fails(ROOM, fd, NULL) ? -1 : REAL(pwrite64)(fd, data, size, offset);
}
int ftruncate(int fd, off_t size) { return fails(CHANGE, fd, NULL) ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return fails(CHANGE, fd, NULL) ? -1 : REAL(ftruncate64)(fd, size); }
int fallocate(int fd, int mode, off_t offset, off_t size) {
    return fails(ROOM, fd, NULL) ? -1 : REAL(fallocate)(fd, mode, offset, size);
}
int posix_fallocate(int fd, off_t offset, off_t size) {
    return fails(ROOM, fd, NULL) ? errno : REAL(posix_fallocate)(fd, offset, size);
}
int fsync(int fd) { return fails(CHANGE, fd, NULL) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails(CHANGE, fd, NULL) ? -1 : REAL(fdatasync)(fd); }

int mkdir(const char *path, mode_t mode) { return fails(ROOM, AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return fails(ROOM, at, path) ? -1 : REAL(mkdirat)(at, path, mode); }
int symlink(const char *target, const char *path) {
    return fails(ROOM, AT_FDCWD, path) ? -1 : REAL(symlink)(target, path);
}
int symlinkat(const char *target, int at, const char *path) {
    return fails(ROOM, at, path) ? -1 : REAL(symlinkat)(target, at, path);
}
int link(const char *from, const char *to) { return fails(ROOM, AT_FDCWD, to) ? -1 : REAL(link)(from, to); }
int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    return fails(ROOM, to_at, to) ? -1 : REAL(linkat)(from_at, from, to_at, to, flags);
}
int rename(const char *from, const char *to) { return fails(CHANGE, AT_FDCWD, to) ? -1 : REAL(rename)(from, to); }
int renameat(int from_at, const char *from, int to_at, const char *to) {
    return fails(CHANGE, to_at, to) ? -1 : REAL(renameat)(from_at, from, to_at, to);
}
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned int flags) {
    return fails(CHANGE, to_at, to) ? -1 : REAL(renameat2)(from_at, from, to_at, to, flags);
}
int unlink(const char *path) { return fails(CHANGE, AT_FDCWD, path) ? -1 : REAL(unlink)(path); }
int unlinkat(int at, const char *path, int flags) { return fails(CHANGE, at, path) ? -1 : REAL(unlinkat)(at, path, flags); }
int rmdir(const char *path) { return fails(CHANGE, AT_FDCWD, path) ? -1 : REAL(rmdir)(path); }
int chmod(const char *path, mode_t mode) { return fails(CHANGE, AT_FDCWD, path) ? -1 : REAL(chmod)(path, mode); }
int fchmod(int fd, mode_t mode) { return fails(CHANGE, fd, NULL) ? -1 : REAL(fchmod)(fd, mode); }
int fchmodat(int at, const char *path, mode_t mode, int flags) {
    return fails(CHANGE, at, path) ? -1 : REAL(fchmodat)(at, path, mode, flags);
}
int utimensat(int at, const char *path, const struct timespec times[2], int flags) {
    return fails(CHANGE, at, path) ? -1 : REAL(utimensat)(at, path, times, flags);
}
