/* A disk that does not flush any more: fsync(2) and fdatasync(2) fail with EIO while the file /run/sick-disk is there. Nothing
   else is wrong with it, as with a disk behind a controller that drops its cache. The file is empty, or holds a piece of the
   paths that are to fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int is_sick(int fd)
{
    char link[32], path[4096] = "", piece[64] = "";
    int flag = open("/run/sick-disk", O_RDONLY | O_CLOEXEC);
    if (flag < 0)
        return 0;
    ssize_t size = read(flag, piece, sizeof piece - 1);
    close(flag);
    piece[size > 0 ? size : 0] = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, path, sizeof path - 1);
    path[size > 0 ? size : 0] = 0;
    return strstr(path, piece) != NULL;
}

static int flush(const char *name, int fd)
{
    if (is_sick(fd)) {
        errno = EIO;
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}

int fsync(int fd)
{
    return flush("fsync", fd);
}

int fdatasync(int fd)
{
    return flush("fdatasync", fd);
}
