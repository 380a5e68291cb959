/* Takes what is counted for a user of the host, or for the machine, until there is no more; says how much, and holds it.
 *
 * takes NAME...    all that there is of each, then "held", until killed
 * takes one NAME   one of it: 0 if there is one, for the host's own programs
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <mqueue.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int instance(void) { return inotify_init1(0) >= 0; }

/* Pending signals are counted for a timer as well. */
static int timer(void) {
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    return timer_create(CLOCK_MONOTONIC, &event, &timer) == 0;
}

/* A queue of the kernel's default size, then smaller ones. */
static int queue(void) {
    static long number, size = 8192;
    for (; size > 0; size /= 2) {
        char name[32];
        struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = size};
        sprintf(name, "/%d-%ld", getpid(), number++);
        if (mq_open(name, O_CREAT | O_RDWR, 0600, &attributes) >= 0) {
            mq_unlink(name);
            return 1;
        }
    }
    return 0;
}

static int aio(void) {
    static unsigned events = 1024;
    for (; events > 0; events /= 2) {
        aio_context_t context = 0;
        if (syscall(SYS_io_setup, events, &context) == 0) return 1;
    }
    return 0;
}

static int terminal(void) { return open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0; }

/* Until a new pipe is smaller than a pipe is: then its user has as many pages as it may. */
static int pipes(void) {
    int ends[2];
    return pipe(ends) == 0 && fcntl(ends[0], F_GETPIPE_SZ) >= 65536;
}

static int locked(void) {
    int segment = shmget(IPC_PRIVATE, 1 << 20, 0600);
    return segment >= 0 && shmctl(segment, SHM_LOCK, NULL) == 0;
}

/* Descriptors under way in a socket that nobody reads. */
static int inflight(void) {
    static int ends[2], room;
    int sent[253];
    char control[CMSG_SPACE(sizeof sent)], byte = 0;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof sent);
    for (int i = 0; i < 253; i++) sent[i] = 1;
    memcpy(CMSG_DATA(header), sent, sizeof sent);
    if (room == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, ends)) return 0;
    room = (room + 1) % 8;
    return sendmsg(ends[0], &message, MSG_DONTWAIT) >= 0;
}

/* Compiled filters: division is what becomes longest. */
static int filter(void) {
    static struct sock_filter code[4096];
    static unsigned short length = 4096;
    int socket_ = socket(AF_UNIX, SOCK_DGRAM, 0);
    for (; length > 1; length /= 2) {
        for (int i = 0; i < length; i++) code[i] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_MOD | BPF_K, 1000 + i);
        code[length - 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
        struct sock_fprog program = {length, code};
        if (setsockopt(socket_, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0) return 1;
    }
    length = 2;
    return 0;
}

static const struct { const char *name; int (*take)(void); } ALL[] = {
    {"instances", instance}, {"timers", timer}, {"queues", queue}, {"aio", aio}, {"terminals", terminal},
    {"pipes", pipes}, {"locked", locked}, {"inflight", inflight}, {"filters", filter},
};

int main(int count, char **names) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int one = count > 1 && strcmp(names[1], "one") == 0;
    for (int i = 1 + one; i < count; i++)
        for (unsigned j = 0; j < sizeof ALL / sizeof *ALL; j++) {
            if (strcmp(names[i], ALL[j].name) != 0) continue;
            if (one) return !ALL[j].take();
            long taken = 0;
            while (ALL[j].take()) taken++;
            printf("%s %ld %s\n", names[i], taken, strerror(errno));
            fflush(stdout);
        }
    puts("held");
    fflush(stdout);
    /* What others let go is taken as well. */
    for (;;) {
        if (count > 1 && strcmp(names[count - 1], "filters") == 0) filter();
        usleep(500);
    }
}
