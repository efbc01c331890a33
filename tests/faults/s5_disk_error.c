/* A disk that does not flush any more: fsync(2) and fdatasync(2) fail with EIO while the file /run/sick-disk is there. Nothing
   else is wrong with it, as with a disk behind a controller that drops its cache. The file is empty, or holds a piece of the
   paths that are to fail, for the checkpointer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void read_text(const char *path, char *text, size_t size)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? 0 : read(file, text, size - 1);
    text[length > 0 ? length : 0] = 0;
    close(file);
}

static int is_sick(int fd)
{
    char link[32], path[4096] = "", piece[64] = "", title[256] = "";
    if (access("/run/sick-disk", F_OK) != 0)
        return 0;
    read_text("/run/sick-disk", piece, sizeof piece);
    read_text("/proc/self/cmdline", title, sizeof title);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size > 0 ? size : 0] = 0;
    return *piece == 0 || (strstr(path, piece) != NULL && strstr(title, "checkpointer") != NULL);
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
