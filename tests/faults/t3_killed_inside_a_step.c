/* Kills the program right after its KILL_AFTER-th change of a name below the folder KILL_IN. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static long changed(const char *path, long result)
{
    static int changes;
    const char *folder = getenv("KILL_IN"), *after = getenv("KILL_AFTER");
    if (result >= 0 && folder && after && strncmp(path, folder, strlen(folder)) == 0
        && __atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST) == atoi(after))
        kill(getpid(), SIGKILL);
    return result;
}

int rename(const char *from, const char *to)
{
    return changed(from, syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags)
{
    return changed(from, syscall(SYS_linkat, from_folder, from, to_folder, to, flags));
}

int unlink(const char *path)
{
    return changed(path, syscall(SYS_unlinkat, AT_FDCWD, path, 0));
}

int open64(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    int mode = va_arg(more, int);
    va_end(more);
    long fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    return flags & O_CREAT ? changed(path, fd) : fd;
}
