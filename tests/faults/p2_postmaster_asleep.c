/* Makes the postmaster hang when it takes a connection: asleep with all signals blocked, or in a write to a file that
   stands on a frozen disk. The flag file says which: it is empty, or holds the path of that file. Or it says "slow". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int accept(int socket, struct sockaddr *address, socklen_t *length)
{
    int flag = open("/run/hang-postmaster", O_RDONLY | O_CLOEXEC);
    if (flag >= 0) {
        char path[256];
        ssize_t size = read(flag, path, sizeof path - 1);
        close(flag);
        path[size > 0 ? size : 0] = 0;
        if (strcmp(path, "slow") == 0) {
            for (unsigned left = 6; left > 0;)
                left = sleep(left);
        } else if (size > 0) {
            int file = open(path, O_WRONLY | O_CLOEXEC);
            if (file < 0 || write(file, "x", 1) != 1)
                _exit(99);
            close(file);
        } else {
            sigset_t all;
            sigfillset(&all);
            for (;;)
                sigsuspend(&all);
        }
    }
    return syscall(SYS_accept4, socket, address, length, 0);
}
