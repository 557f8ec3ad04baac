/* Makes the Nth write or sync of files below a folder fail. Loaded with LD_PRELOAD into the writer only.
 *
 * MNEME_FAULT_PATH    count only files whose path starts with this
 * MNEME_FAULT_AT      which call fails, from 1; 0 counts only
 * MNEME_FAULT_ERRNO   with which error
 * MNEME_FAULT_STICKY  1: every later call fails too
 * MNEME_FAULT_COUNT   a file that receives the number of calls at exit
 * MNEME_FAULT_NAMES   1: making, renaming and linking files counts too
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;
static long fault_at, fault_errno, fault_sticky, fault_names;
static const char *fault_path;
static size_t fault_path_bytes;

__attribute__((constructor)) static void start(void) {
    const char *text;
    fault_path = getenv("MNEME_FAULT_PATH");
    fault_path_bytes = fault_path ? strlen(fault_path) : 0;
    fault_at = (text = getenv("MNEME_FAULT_AT")) ? atol(text) : 0;
    fault_errno = (text = getenv("MNEME_FAULT_ERRNO")) ? atol(text) : EIO;
    fault_sticky = (text = getenv("MNEME_FAULT_STICKY")) ? atol(text) : 0;
    fault_names = (text = getenv("MNEME_FAULT_NAMES")) ? atol(text) : 0;
}

__attribute__((destructor)) static void finish(void) {
    const char *path = getenv("MNEME_FAULT_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%ld\n", atomic_load(&calls));
        fclose(file);
    }
}

/* Whether this call on a path is to fail. */
static int path_fails(const char *path) {
    long number;
    if (!fault_path || strncmp(path, fault_path, fault_path_bytes) != 0) return 0;
    number = atomic_fetch_add(&calls, 1) + 1;
    if (fault_at && (number == fault_at || (fault_sticky && number > fault_at))) {
        errno = (int)fault_errno;
        return 1;
    }
    return 0;
}

static int name_fails(const char *path) {
    return fault_names && path_fails(path);
}

/* Whether this call on an open file is to fail. */
static int fails(int fd) {
    char link[64], path[4096];
    ssize_t length;
    if (!fault_path) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path_fails(path);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(write);
    return fails(fd) ? -1 : real(fd, bytes, count);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return fails(fd) ? -1 : real(fd, parts, count);
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    REAL(pwrite);
    return fails(fd) ? -1 : real(fd, bytes, count, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    REAL(pwrite64);
    return fails(fd) ? -1 : real(fd, bytes, count, at);
}
int fsync(int fd) {
    REAL(fsync);
    return fails(fd) ? -1 : real(fd);
}
int fdatasync(int fd) {
    REAL(fdatasync);
    return fails(fd) ? -1 : real(fd);
}
int ftruncate(int fd, off_t length) {
    REAL(ftruncate);
    return fails(fd) ? -1 : real(fd, length);
}
int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    return fails(fd) ? -1 : real(fd, length);
}
int rename(const char *from, const char *to) {
    REAL(rename);
    return name_fails(to) ? -1 : real(from, to);
}
int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    REAL(linkat);
    return name_fails(to) ? -1 : real(from_fd, from, to_fd, to, flags);
}
int open64(const char *path, int flags, ...) {
    va_list rest;
    mode_t mode;
    REAL(open64);
    va_start(rest, flags);
    mode = (mode_t)va_arg(rest, int);
    va_end(rest);
    return (flags & O_CREAT) && name_fails(path) ? -1 : real(path, flags, mode);
}
