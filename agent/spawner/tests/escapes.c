// Calls that lead out of a container where its profile lets them through. Prints the name of each that does not fail as
// it has to, and "checked". Arguments: a process of the host, and the absolute path of a directory of the host.

#define _GNU_SOURCE
#include <errno.h>
#include <linux/keyctl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static void fails(const char *name, long result, int expected)
{
    if (result != -1 || errno != expected)
        printf("POSSIBLE: %s\n", name);
}

// The filter answers before the kernel looks at the arguments: any other error means that the call was let through.
#define FORBIDDEN(name, ...) fails(#name, syscall(SYS_##name, __VA_ARGS__), EPERM)

static void keyrings(void)
{
    FORBIDDEN(keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0L);
    FORBIDDEN(add_key, "user", "escape", "x", 1L, KEY_SPEC_PROCESS_KEYRING);
    FORBIDDEN(request_key, "user", "escape", 0L, 0L);
}

static void namespaces_and_mounts(void)
{
    FORBIDDEN(unshare, CLONE_NEWUSER);
    FORBIDDEN(unshare, CLONE_NEWNS);
    FORBIDDEN(setns, -1, 0);
    long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0L, 0L, 0L, 0L);
    if (child == 0)
        _exit(0);
    fails("clone into a user namespace", child, EPERM);
    // ENOSYS: libc goes on with clone, whose flags the filter can read.
    fails("clone3", syscall(SYS_clone3, 0L, 0L), ENOSYS);
    FORBIDDEN(mount, 0L, 0L, 0L, 0L, 0L);
    FORBIDDEN(umount2, 0L, 0L);
    FORBIDDEN(pivot_root, 0L, 0L);
    FORBIDDEN(fsopen, 0L, 0L);
    FORBIDDEN(open_tree, -1, 0L, 0L);
    FORBIDDEN(move_mount, -1, 0L, -1, 0L, 0L);
    FORBIDDEN(mount_setattr, -1, 0L, 0L, 0L, 0L);
    FORBIDDEN(open_by_handle_at, -1, 0L, 0L);
}

static void kernel(void)
{
    FORBIDDEN(bpf, 0L, 0L, 0L);
    FORBIDDEN(perf_event_open, 0L, 0L, -1, -1, 0L);
    FORBIDDEN(userfaultfd, 0L);
    FORBIDDEN(io_uring_setup, 0L, 0L);
    FORBIDDEN(init_module, 0L, 0L, 0L);
    FORBIDDEN(finit_module, -1, 0L, 0L);
    FORBIDDEN(delete_module, 0L, 0L);
    FORBIDDEN(kexec_load, 0L, 0L, 0L, 0L);
    FORBIDDEN(kexec_file_load, -1, -1, 0L, 0L, 0L);
    // No magic numbers: nothing is restarted where it is let through.
    FORBIDDEN(reboot, 0L, 0L, 0L, 0L);
    FORBIDDEN(swapoff, 0L);
    FORBIDDEN(clock_settime, 0L, 0L);
    FORBIDDEN(syslog, 10L, 0L, 0L);
    FORBIDDEN(pidfd_getfd, -1, 0L, 0L);
#ifdef SYS_iopl
    FORBIDDEN(iopl, 3L);
    FORBIDDEN(ioperm, 0L, 1L, 1L);
#endif
}

static void sockets(void)
{
    fails("raw IP", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), EPERM);
    fails("AF_VSOCK", socket(AF_VSOCK, SOCK_STREAM, 0), EPERM);
    // A kernel without packet sockets has none to give.
    int packet = socket(AF_PACKET, SOCK_RAW, 0);
    if (packet != -1 || errno != EAFNOSUPPORT)
        fails("AF_PACKET", packet, EPERM);
}

static void processes(pid_t of_the_host)
{
    char byte;
    struct iovec here = { &byte, 1 }, there = { &byte, 1 };
    fails("kill", kill(of_the_host, 0), ESRCH);
    fails("ptrace", syscall(SYS_ptrace, (long)PTRACE_SEIZE, (long)of_the_host, 0L, 0L), ESRCH);
    fails("process_vm_readv", process_vm_readv(of_the_host, &here, 1, &there, 1, 0), ESRCH);
    fails("pidfd_open", syscall(SYS_pidfd_open, (long)of_the_host, 0L), ESRCH);
}

// A process whose directory lies outside its root climbs to the top of its mount namespace.
static void chroot_and_climb(const char *directory_of_the_host)
{
    mkdir("/tmp/jail", 0700);
    if (chroot("/tmp/jail") == -1 && errno != EPERM)
        printf("chroot cannot be tried: %d\n", errno);
    for (int i = 0; i < 64; i++)
        if (chdir("..") == -1)
            printf("there is no way up: %d\n", errno);
    fails("chroot", access(directory_of_the_host + 1, F_OK), ENOENT);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    keyrings();
    namespaces_and_mounts();
    kernel();
    sockets();
    processes(atoi(argv[1]));
    chroot_and_climb(argv[2]);
    puts("checked");
    return 0;
}
