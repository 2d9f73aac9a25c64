/* The type Semaphore: an open POSIX semaphore, posted and waited for at less cost than through Python. Creates and
 * removes none. */
#include "native.h"

#include <errno.h>
#include <math.h>
#include <semaphore.h>
#include <time.h>

/* musl and old versions of glibc wait by the wall clock only. TR_MMAP_NO_CLOCKWAIT is for tests. */
#if defined(__GLIBC__) && !defined(TR_MMAP_NO_CLOCKWAIT)
#if __GLIBC_PREREQ(2, 30)
#define HAS_CLOCKWAIT
#endif
#endif

#ifdef HAS_CLOCKWAIT
static const clockid_t SLEEP_CLOCK = CLOCK_MONOTONIC;
static const double MAX_SLEEP_S = 1e6; /* so that no timeout, infinity included, overflows the clock's seconds */
static int wait_until(sem_t *semaphore, const struct timespec *until) {
    return sem_clockwait(semaphore, CLOCK_MONOTONIC, until);
}
#else
static const clockid_t SLEEP_CLOCK = CLOCK_REALTIME;
static const double MAX_SLEEP_S = WIRE_WAIT_SLICE_S; /* the clock may be set while we sleep */
static int wait_until(sem_t *semaphore, const struct timespec *until) { return sem_timedwait(semaphore, until); }
#endif

typedef struct {
    PyObject_HEAD
    sem_t *semaphore; /* NULL until __init__ has run */
} Semaphore;

static int semaphore_init(Semaphore *self, PyObject *arguments, PyObject *keywords) {
    const char *name;
    static char *names[] = {"name", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "s", names, &name)) return -1;
    if (self->semaphore != NULL) {
        PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
        return -1;
    }
    sem_t *semaphore = sem_open(name, 0); /* no code of Python's runs from the check to here */
    if (semaphore == SEM_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    self->semaphore = semaphore;
    return 0;
}

static void semaphore_dealloc(Semaphore *self) {
    if (self->semaphore != NULL) sem_close(self->semaphore);
    free_object((PyObject *)self);
}

int semaphore_is_initialised(PyObject *semaphore) {
    if (((Semaphore *)semaphore)->semaphore != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ has not run: no semaphore is open");
    return 0;
}

void semaphore_post(PyObject *self) {
    sem_post(((Semaphore *)self)->semaphore); /* fails only if the peer left 2**31 posts untaken: it will wake up */
}

PyDoc_STRVAR(post_doc,
             "post()\n--\n\nWake up the process that waits for it.\n\n"
             "Raises:\n    OSError: it was posted 2**31 times without a wait.");

static PyObject *py_post(Semaphore *self, PyObject *unused) {
    (void)unused;
    if (!semaphore_is_initialised((PyObject *)self)) return NULL;
    if (sem_post(self->semaphore) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

int semaphore_wait(PyObject *semaphore, double timeout_s) {
    Semaphore *self = (Semaphore *)semaphore;
    if (!semaphore_is_initialised(semaphore)) return -1;
    unsigned generation = fork_generation;
    if (PyErr_CheckSignals() < 0) return -1;
    if (generation != fork_generation) return 1; /* a handler has forked: the posts are its parent's */
    /* It may have been posted more than once, for messages that were found without waiting. One wait takes all of
     * these posts, for together they say no more than one: look for a message. */
    int was_posted = 0;
    for (int count = 0; count < WIRE_MAX_DRAINED_RINGS && sem_trywait(self->semaphore) == 0; count++) was_posted = 1;
    if (was_posted) return PyErr_CheckSignals() < 0 ? -1 : 1; /* again, for the drain may have taken long */
    if (!(timeout_s > 0)) return 0;
    if (timeout_s > MAX_SLEEP_S) timeout_s = MAX_SLEEP_S;
    struct timespec until;
    clock_gettime(SLEEP_CLOCK, &until);
    long whole_s = (long)timeout_s;
    until.tv_sec += whole_s;
    until.tv_nsec += (long)((timeout_s - (double)whole_s) * 1e9);
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec += 1;
        until.tv_nsec -= 1000000000L;
    }
    int failed, code;
    Py_BEGIN_ALLOW_THREADS
    failed = wait_until(self->semaphore, &until);
    code = errno;
    Py_END_ALLOW_THREADS
    if (failed && code != ETIMEDOUT && code != EINTR) {
        errno = code;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (PyErr_CheckSignals() < 0) return -1;
    /* after EINTR too: a handler that does not raise may change what the caller checks */
    return !failed || code == EINTR;
}

double longest_sleep_s(double slice_s, double waited_s) {
    if (!is_main_thread()) return slice_s;
    return fmin(slice_s, fmax(WIRE_SIGNAL_SLICE_S, waited_s * WIRE_SIGNAL_SLICE_SHARE));
}

int parse_time(PyObject *argument, double *seconds) {
    *seconds = PyFloat_AsDouble(argument);
    if (*seconds == -1.0 && PyErr_Occurred()) return -1;
    if (!isnan(*seconds)) return 0;
    PyErr_SetString(PyExc_ValueError, "the time to wait is not a number (NaN)");
    return -1;
}

int parse_slice(PyObject *argument, double *seconds) {
    if (parse_time(argument, seconds) < 0) return -1;
    if (*seconds > 0 && !isinf(*seconds)) {
        *seconds = fmax(*seconds, WIRE_MIN_SLICE_S);
        return 0;
    }
    PyErr_SetString(PyExc_ValueError, "slice_s, the longest single sleep, is a positive number of seconds");
    return -1;
}

PyDoc_STRVAR(wait_doc,
             "wait(timeout_s)\n--\n\n"
             "Sleep until it is posted. What a signal handler raises, Ctrl-C say, comes at once.\n\n"
             "Returns:\n    False when the time is over; True if it was posted, or if a signal handler ran.\n\n"
             "Raises:\n    ValueError: the time is NaN.");

static PyObject *py_wait(Semaphore *self, PyObject *argument) {
    double timeout_s, began_us = now_us(), waited_s = 0;
    if (parse_time(argument, &timeout_s) < 0) return NULL;
    int was_posted;
    do {
        was_posted = semaphore_wait((PyObject *)self, longest_sleep_s(timeout_s - waited_s, waited_s));
        waited_s = (now_us() - began_us) / 1e6;
    } while (was_posted == 0 && waited_s < timeout_s);
    return was_posted < 0 ? NULL : PyBool_FromLong(was_posted);
}

static PyMethodDef semaphore_methods[] = {
    {"post", (PyCFunction)py_post, METH_NOARGS, post_doc},
    {"wait", (PyCFunction)py_wait, METH_O, wait_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot semaphore_slots[] = {
    {Py_tp_doc, "Semaphore(name)\n--\n\nAn existing named semaphore.\n\n"
                "Raises:\n    OSError: there is none, or it is not ours."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, semaphore_init},
    {Py_tp_dealloc, semaphore_dealloc},
    {Py_tp_methods, semaphore_methods},
    {0, NULL},
};

PyType_Spec semaphore_spec = {
    .name = "tr_mmap.native.Semaphore",
    .basicsize = sizeof(Semaphore),
    .flags = TYPE_FLAGS,
    .slots = semaphore_slots,
};
