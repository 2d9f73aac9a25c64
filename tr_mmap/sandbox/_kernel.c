/* What the sandbox needs and Python lacks: system calls, detection of a stack overflow, and copies of memory whose file
 * others may truncate. Decides nothing: the policy is in Python.
 *
 * The numbers of the system calls come from the compiler, because they differ from machine to machine. */
#include "../native/compat.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* The kernel's own structures, written out: the headers of older systems lack them, or their last members. */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
enum { TREE_CLONE = 1, TREE_RECURSIVE = 0x8000, EMPTY_PATH = 0x1000, MOVE_EMPTY_PATH = 4 };
struct mount_attributes {
    uint64_t set, clear, propagation, user_namespace;
};
enum { CREATE_RULESET_VERSION = 1, RULE_PATH_BENEATH = 1 };
struct ruleset_attr {
    uint64_t handled_access_fs, handled_access_net, scoped;
};
struct __attribute__((packed)) path_beneath_attr {
    uint64_t allowed_access;
    int32_t parent_fd;
};

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#else
#define MACHINE 0 /* seccomp is refused here */
#endif

static PyObject *result_of(long code) {
    return code < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(code);
}

PyDoc_STRVAR(landlock_abi_doc, "landlock_abi()\n--\n\nThe version of Landlock; 0 if this kernel has none, or not active.");

static PyObject *landlock_abi(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_RULESET_VERSION);
    return PyLong_FromLong(version < 0 ? 0 : version);
}

PyDoc_STRVAR(make_ruleset_doc,
             "make_ruleset(files, net, scoped, nbytes)\n--\n\n"
             "Make a Landlock ruleset of `nbytes` bytes of these three masks. Returns its descriptor.\n\n"
             "Raises:\n    OSError: the kernel refuses.");

static PyObject *make_ruleset(PyObject *Py_UNUSED(module), PyObject *arguments) {
    unsigned long long files, net, scoped;
    Py_ssize_t nbytes;
    if (!PyArg_ParseTuple(arguments, "KKKn", &files, &net, &scoped, &nbytes)) return NULL;
    struct ruleset_attr attributes = {files, net, scoped};
    if (nbytes < 8 || nbytes > (Py_ssize_t)sizeof attributes) {
        PyErr_SetString(PyExc_ValueError, "a ruleset has 8 to 24 bytes");
        return NULL;
    }
    return result_of(syscall(SYS_landlock_create_ruleset, &attributes, (size_t)nbytes, 0));
}

PyDoc_STRVAR(allow_beneath_doc,
             "allow_beneath(ruleset, fd, access)\n--\n\nAllow an access to a file, or to all beneath a directory.\n\n"
             "Raises:\n    OSError: the kernel refuses.");

static PyObject *allow_beneath(PyObject *Py_UNUSED(module), PyObject *arguments) {
    int ruleset, fd;
    unsigned long long access;
    if (!PyArg_ParseTuple(arguments, "iiK", &ruleset, &fd, &access)) return NULL;
    struct path_beneath_attr rule = {access, fd};
    return result_of(syscall(SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &rule, 0));
}

PyDoc_STRVAR(restrict_self_doc,
             "restrict_self(ruleset)\n--\n\nEnforce a ruleset on this thread and all that it starts, for good.\n\n"
             "Raises:\n    OSError: the kernel refuses.");

static PyObject *restrict_self(PyObject *Py_UNUSED(module), PyObject *argument) {
    long ruleset = PyLong_AsLong(argument);
    if (ruleset == -1 && PyErr_Occurred()) return NULL;
    return result_of(syscall(SYS_landlock_restrict_self, (int)ruleset, 0));
}

PyDoc_STRVAR(prctl_doc, "prctl(option, value)\n--\n\nprctl(2).\n\nRaises:\n    OSError: the kernel refuses.");

static PyObject *py_prctl(PyObject *Py_UNUSED(module), PyObject *arguments) {
    int option;
    unsigned long value;
    if (!PyArg_ParseTuple(arguments, "ik", &option, &value)) return NULL;
    return result_of(prctl(option, value, 0, 0, 0));
}

PyDoc_STRVAR(drop_capabilities_doc,
             "drop_capabilities()\n--\n\nGive up all capabilities of this thread.\n\nRaises:\n    OSError: the kernel refuses.");

static PyObject *drop_capabilities(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    struct {
        uint32_t version;
        int pid;
    } header = {0x20080522, 0};
    struct {
        uint32_t effective, permitted, inheritable;
    } none[2] = {{0, 0, 0}, {0, 0, 0}};
    return result_of(syscall(SYS_capset, &header, none));
}

PyDoc_STRVAR(install_filter_doc,
             "install_filter(program)\n--\n\n"
             "Install a seccomp filter for all threads of this process, for good. It must have no new privileges.\n\n"
             "Args:\n    program: struct sock_filter, one after another.\n\n"
             "Raises:\n    OSError: the kernel refuses.");

static PyObject *install_filter(PyObject *Py_UNUSED(module), PyObject *argument) {
    Py_buffer view;
    if (PyObject_GetBuffer(argument, &view, PyBUF_SIMPLE) < 0) return NULL;
    struct sock_fprog program = {(unsigned short)(view.len / (Py_ssize_t)sizeof(struct sock_filter)), view.buf};
    PyObject *result = NULL;
    if (view.len == 0 || view.len % (Py_ssize_t)sizeof(struct sock_filter) != 0 ||
        view.len / (Py_ssize_t)sizeof(struct sock_filter) > BPF_MAXINSNS)
        PyErr_SetString(PyExc_ValueError, "no whole number of instructions, or too many");
    else
        result = result_of(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program));
    PyBuffer_Release(&view);
    return result;
}

PyDoc_STRVAR(has_filters_doc, "has_filters()\n--\n\nWhether this kernel has seccomp filters.");

static PyObject *has_filters(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    /* With no program, a kernel that has filters says EFAULT. */
    long code = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, NULL);
    return PyBool_FromLong(MACHINE != 0 && code < 0 && errno == EFAULT);
}

/* -- namespaces ----------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(unshare_doc, "unshare(flags)\n--\n\nunshare(2).\n\nRaises:\n    OSError: the kernel refuses.");

static PyObject *py_unshare(PyObject *Py_UNUSED(module), PyObject *argument) {
    long flags = PyLong_AsLong(argument);
    if (flags == -1 && PyErr_Occurred()) return NULL;
    return result_of(unshare((int)flags));
}

PyDoc_STRVAR(mount_doc,
             "mount(target, kind, flags, options)\n--\n\nmount(2) of a file system without a device; kind None changes "
             "flags only.\n\nRaises:\n    OSError: the kernel refuses.");

static PyObject *py_mount(PyObject *Py_UNUSED(module), PyObject *arguments) {
    const char *target, *kind, *options;
    unsigned long flags;
    if (!PyArg_ParseTuple(arguments, "szks", &target, &kind, &flags, &options)) return NULL;
    return result_of(mount(kind == NULL ? "none" : kind, target, kind, flags, options));
}

PyDoc_STRVAR(pivot_root_doc,
             "pivot_root()\n--\n\nMake the working directory the root, and let go of the former root.\n\n"
             "Raises:\n    OSError: the kernel refuses.");

static PyObject *py_pivot_root(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(unmount_doc, "unmount(path)\n--\n\nTake the mount at a path away.\n\nRaises:\n    OSError: the kernel refuses.");

static PyObject *py_unmount(PyObject *Py_UNUSED(module), PyObject *argument) {
    const char *path = PyUnicode_AsUTF8(argument);
    if (path == NULL) return NULL;
    return result_of(umount2(path, MNT_DETACH));
}

PyDoc_STRVAR(clone_mount_doc,
             "clone_mount(path, attributes)\n--\n\nA descriptor of a copy of the mount at a path, with all beneath it, "
             "with some attributes of mount_setattr(2) set.\n\nRaises:\n    OSError: the kernel refuses.");

static PyObject *clone_mount(PyObject *Py_UNUSED(module), PyObject *arguments) {
    const char *path;
    unsigned long long attributes;
    if (!PyArg_ParseTuple(arguments, "sK", &path, &attributes)) return NULL;
    long fd = syscall(SYS_open_tree, AT_FDCWD, path, TREE_CLONE | TREE_RECURSIVE | O_CLOEXEC);
    struct mount_attributes wanted = {attributes, 0, 0, 0};
    if (fd >= 0 && syscall(SYS_mount_setattr, (int)fd, "", EMPTY_PATH | TREE_RECURSIVE, &wanted, sizeof wanted) < 0) {
        int code = errno;
        close((int)fd);
        errno = code;
        fd = -1;
    }
    return result_of(fd);
}

PyDoc_STRVAR(move_mount_doc,
             "move_mount(fd, target)\n--\n\nPut a mount of clone_mount at a path.\n\n"
             "Raises:\n    OSError: the kernel refuses.");

static PyObject *move_mount_to(PyObject *Py_UNUSED(module), PyObject *arguments) {
    int fd;
    const char *target;
    if (!PyArg_ParseTuple(arguments, "is", &fd, &target)) return NULL;
    return result_of(syscall(SYS_move_mount, fd, "", AT_FDCWD, target, MOVE_EMPTY_PATH));
}

/* -- the stack ------------------------------------------------------------------------------------------------------ */

enum { SIGNAL_STACK_NBYTES = 64 << 10, NEAR_NBYTES = 64 << 10, LARGEST_STACK = 1 << 30 };
static int overflow_status;
static uintptr_t stack_base; /* about where the main thread's stack begins */

static void on_fault(int number, siginfo_t *info, void *context) {
#if defined(__x86_64__)
    uintptr_t top = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RSP];
#elif defined(__aarch64__)
    uintptr_t top = (uintptr_t)((ucontext_t *)context)->uc_mcontext.sp;
#else
    uintptr_t top = 0;
    (void)context;
#endif
    uintptr_t address = (uintptr_t)info->si_addr;
    /* A store close to the stack pointer faults only if the stack cannot grow any more. */
    if (address + NEAR_NBYTES >= top && address < top + NEAR_NBYTES) _exit(overflow_status);
    /* The pointer may be beyond the limit already while a large frame is first used at its other end. */
    struct rlimit limit;
    if (address + NEAR_NBYTES >= top && address < stack_base && getrlimit(RLIMIT_STACK, &limit) == 0 &&
        limit.rlim_cur < stack_base && top < stack_base - limit.rlim_cur && stack_base - top < LARGEST_STACK)
        _exit(overflow_status);
    signal(number, SIG_DFL); /* the same instruction faults again, and ends the process */
}

PyDoc_STRVAR(watch_stack_doc,
             "watch_stack(status)\n--\n\nLet this process exit with a status when its main thread's stack overflows.\n\n"
             "Raises:\n    OSError: the kernel refuses.");

static PyObject *watch_stack(PyObject *Py_UNUSED(module), PyObject *argument) {
    long status = PyLong_AsLong(argument);
    if (status == -1 && PyErr_Occurred()) return NULL;
    struct sigaction former;
    if (sigaction(SIGSEGV, NULL, &former) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    if (former.sa_handler != SIG_DFL) Py_RETURN_NONE; /* the WebAssembly engine has its own handler, for its traps */
    overflow_status = (int)status;
    stack_base = (uintptr_t)__builtin_frame_address(0);
    void *memory = mmap(NULL, SIGNAL_STACK_NBYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
    stack_t stack = {.ss_sp = memory, .ss_size = SIGNAL_STACK_NBYTES};
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    action.sa_sigaction = on_fault;
    sigemptyset(&action.sa_mask);
    if (sigaltstack(&stack, NULL) < 0 || sigaction(SIGSEGV, &action, NULL) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* -- copies of mapped files that others may truncate ----------------------------------------------------------------- */

static __thread sigjmp_buf *volatile guard; /* where this thread continues if it reads a page that the file has lost */
static struct sigaction former_action;      /* the handler for all other faults */
static __thread volatile sig_atomic_t is_passed_on;
static int guard_count;
static pthread_mutex_t guard_lock = PTHREAD_MUTEX_INITIALIZER;

static void on_lost_page(int number, siginfo_t *info, void *context) {
    if (guard != NULL) siglongjmp(*guard, 1);
    if (is_passed_on) { /* the former handler called this one: each takes the other for its former one */
        signal(number, SIG_DFL);
        return;
    }
    is_passed_on = 1;
    if (former_action.sa_flags & SA_SIGINFO)
        former_action.sa_sigaction(number, info, context);
    else if (former_action.sa_handler != SIG_DFL && former_action.sa_handler != SIG_IGN)
        former_action.sa_handler(number);
    else
        signal(number, SIG_DFL); /* the same instruction faults again, and ends the process */
    is_passed_on = 0;
}

static void watch_pages(int step) {
    pthread_mutex_lock(&guard_lock);
    if (step > 0 && guard_count == 0) {
        /* SA_NODEFER: if the former handler raises the signal again, this handler must see it at once. */
        struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
        action.sa_sigaction = on_lost_page;
        sigemptyset(&action.sa_mask);
        sigaction(SIGBUS, &action, &former_action);
    }
    guard_count += step;
    if (guard_count == 0) {
        struct sigaction now;
        sigaction(SIGBUS, NULL, &now);
        /* If another handler was installed meanwhile (by faulthandler.enable(), say), leave it: it calls ours as its
         * former one. */
        if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_lost_page) sigaction(SIGBUS, &former_action, NULL);
    }
    pthread_mutex_unlock(&guard_lock);
}

PyDoc_STRVAR(copy_guarded_doc,
             "copy_guarded(target, offset, address, nbytes)\n--\n\n"
             "Copy memory of this process into a buffer. Returns whether all of it was there: a file that was truncated "
             "has no pages behind its end.");

static PyObject *copy_guarded(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer target;
    Py_ssize_t offset, nbytes;
    unsigned long long address;
    if (!PyArg_ParseTuple(arguments, "w*nKn", &target, &offset, &address, &nbytes)) return NULL;
    if (offset < 0 || nbytes < 0 || offset > target.len || nbytes > target.len - offset) {
        PyBuffer_Release(&target);
        PyErr_SetString(PyExc_ValueError, "it has no place in the buffer");
        return NULL;
    }
    volatile int is_whole = 1;
    watch_pages(1);
    Py_BEGIN_ALLOW_THREADS
    sigjmp_buf here;
    if (sigsetjmp(here, 1) == 0) {
        guard = &here;
        __asm__ volatile("" ::: "memory");
        memcpy((char *)target.buf + offset, (const void *)(uintptr_t)address, (size_t)nbytes);
        __asm__ volatile("" ::: "memory");
    } else
        is_whole = 0;
    guard = NULL;
    Py_END_ALLOW_THREADS
    watch_pages(-1);
    PyBuffer_Release(&target);
    return PyBool_FromLong(is_whole);
}

static void renew_lock(void) { /* in a forked child: a thread that does not exist there may have held it */
    pthread_mutex_init(&guard_lock, NULL);
}

static PyMethodDef methods[] = {
    {"copy_guarded", copy_guarded, METH_VARARGS, copy_guarded_doc},
    {"unshare", py_unshare, METH_O, unshare_doc},
    {"mount", py_mount, METH_VARARGS, mount_doc},
    {"pivot_root", py_pivot_root, METH_NOARGS, pivot_root_doc},
    {"unmount", py_unmount, METH_O, unmount_doc},
    {"clone_mount", clone_mount, METH_VARARGS, clone_mount_doc},
    {"move_mount", move_mount_to, METH_VARARGS, move_mount_doc},
    {"watch_stack", watch_stack, METH_O, watch_stack_doc},
    {"landlock_abi", landlock_abi, METH_NOARGS, landlock_abi_doc},
    {"make_ruleset", make_ruleset, METH_VARARGS, make_ruleset_doc},
    {"allow_beneath", allow_beneath, METH_VARARGS, allow_beneath_doc},
    {"restrict_self", restrict_self, METH_O, restrict_self_doc},
    {"prctl", py_prctl, METH_VARARGS, prctl_doc},
    {"drop_capabilities", drop_capabilities, METH_NOARGS, drop_capabilities_doc},
    {"install_filter", install_filter, METH_O, install_filter_doc},
    {"has_filters", has_filters, METH_NOARGS, has_filters_doc},
    {NULL, NULL, 0, NULL},
};

static int add_numbers(PyObject *module) {
    static const struct {
        const char *name;
        long number;
    } calls[] = {
#include "_syscalls.h"
    };
    PyObject *numbers = PyDict_New();
    for (size_t index = 0; numbers != NULL && index < sizeof calls / sizeof *calls; index++) {
        PyObject *number = PyLong_FromLong(calls[index].number);
        if (number == NULL || PyDict_SetItemString(numbers, calls[index].name, number) < 0) Py_CLEAR(numbers);
        Py_XDECREF(number);
    }
    if (numbers == NULL) return -1;
    int code = PyModule_AddObjectRef(module, "SYSCALLS", numbers);
    Py_DECREF(numbers);
    return code;
}

static int execute(PyObject *module) {
    static int has_hook = 0;
    if (!has_hook && pthread_atfork(NULL, NULL, renew_lock) != 0) {
        PyErr_NoMemory();
        return -1;
    }
    has_hook = 1;
    return add_numbers(module) < 0 || PyModule_AddIntConstant(module, "MACHINE", (long)MACHINE) < 0 ? -1 : 0;
}

/* Signal handlers and stacks belong to the process; so the module has no state of its own. */
static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)execute},
    MAIN_INTERPRETER_ONLY
    WITH_THE_LOCK
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tr_mmap.sandbox._kernel",
    .m_doc = "Landlock, seccomp, prctl, and the numbers of the system calls.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }
