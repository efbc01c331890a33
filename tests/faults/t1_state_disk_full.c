/* Answers as a full disk does, from the FULL_AFTER-th file or folder on that is made or written below the folder FULL_IN. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int full(const char *path)
{
    static int times;
    const char *folder = getenv("FULL_IN"), *after = getenv("FULL_AFTER");
    if (!folder || !after || strncmp(path, folder, strlen(folder)) != 0
        || __atomic_add_fetch(&times, 1, __ATOMIC_SEQ_CST) < atoi(after))
        return 0;
    /* Tells whether it came to that. */
    syscall(SYS_close, syscall(SYS_openat, AT_FDCWD, "/run/was-full", O_CREAT | O_WRONLY, 0600));
    errno = ENOSPC;
    return 1;
}

int open64(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    int mode = va_arg(more, int);
    va_end(more);
    return (flags & O_CREAT) && full(path) ? -1 : syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int mkdir(const char *path, unsigned int mode)
{
    return full(path) ? -1 : syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

ssize_t write(int file, const void *bytes, size_t size)
{
    char link[32], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length > 0) {
        path[length] = 0;
        if (full(path))
            return -1;
    }
    return syscall(SYS_write, file, bytes, size);
}
