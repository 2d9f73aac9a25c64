/* Ringing and waiting for a POSIX semaphore, without what a wait through Python costs. */
#include "native.h"

#include <errno.h>
#include <semaphore.h>
#include <time.h>

enum { MOST_RINGS = 1 << 16 }; /* taken at a time, so that whoever rings without pause keeps nobody here */

typedef struct {
    PyObject_HEAD
    sem_t *semaphore;
} Bell;

static int bell_init(Bell *self, PyObject *arguments, PyObject *keywords) {
    const char *name;
    static char *names[] = {"name", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "s", names, &name)) return -1;
    if (self->semaphore != NULL) {
        PyErr_SetString(PyExc_ValueError, "a bell is opened once");
        return -1;
    }
    sem_t *semaphore = sem_open(name, 0);
    if (semaphore == SEM_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    self->semaphore = semaphore;
    return 0;
}

static void bell_dealloc(Bell *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (self->semaphore != NULL) sem_close(self->semaphore);
    type->tp_free((PyObject *)self);
}

static int is_open(Bell *self) {
    if (self->semaphore != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "the bell is not open");
    return 0;
}

PyDoc_STRVAR(ring_doc, "ring()\n--\n\nRaises:\n    OSError: it was rung 2**31 times and nobody has looked.");

void ring_bell(PyObject *bell) {
    sem_t *semaphore = ((Bell *)bell)->semaphore;
    if (semaphore != NULL) sem_post(semaphore); /* it fails where the bell was rung 2**31 times and nobody slept since */
}

static PyObject *bell_ring(Bell *self, PyObject *unused) {
    (void)unused;
    if (!is_open(self)) return NULL;
    if (sem_post(self->semaphore) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

int wait_for_bell(PyObject *bell, double timeout_s) {
    if (!PyObject_TypeCheck(bell, &BellType)) {
        PyErr_SetString(PyExc_TypeError, "a Bell is needed");
        return -1;
    }
    Bell *self = (Bell *)bell;
    if (!is_open(self)) return -1;
    /* Rung already, perhaps more than once, for messages that were found without waiting: all these are one hint. */
    int was_rung = 0;
    for (int count = 0; count < MOST_RINGS && sem_trywait(self->semaphore) == 0; count++) was_rung = 1;
    if (was_rung) return 1;
    if (!(timeout_s > 0)) return 0;
    if (timeout_s > 1e6) timeout_s = 1e6;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    long whole_s = (long)timeout_s;
    until.tv_sec += whole_s;
    until.tv_nsec += (long)((timeout_s - (double)whole_s) * 1e9);
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec += 1;
        until.tv_nsec -= 1000000000L;
    }
    int failed, code;
    Py_BEGIN_ALLOW_THREADS
    failed = sem_clockwait(self->semaphore, CLOCK_MONOTONIC, &until);
    code = errno;
    Py_END_ALLOW_THREADS
    if (!failed) return 1;
    if (code == ETIMEDOUT) return 0;
    if (code != EINTR) {
        errno = code;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return PyErr_CheckSignals() < 0 ? -1 : 1; /* a handler ran and did not raise: look again */
}

PyDoc_STRVAR(wait_doc,
             "wait(timeout_s)\n--\n\nSleep until rung; False when the time is over. What a signal handler raises comes at once.");

static PyObject *bell_wait(Bell *self, PyObject *argument) {
    double timeout_s = PyFloat_AsDouble(argument);
    if (timeout_s == -1.0 && PyErr_Occurred()) return NULL;
    int was_rung = wait_for_bell((PyObject *)self, timeout_s);
    return was_rung < 0 ? NULL : PyBool_FromLong(was_rung);
}

static PyMethodDef bell_methods[] = {
    {"ring", (PyCFunction)bell_ring, METH_NOARGS, ring_doc},
    {"wait", (PyCFunction)bell_wait, METH_O, wait_doc},
    {NULL, NULL, 0, NULL},
};

PyTypeObject BellType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Bell",
    .tp_doc = "Bell(name)\n--\n\nAn existing named semaphore.\n\nRaises:\n    OSError: there is none, or it is not ours.",
    .tp_basicsize = sizeof(Bell),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)bell_init,
    .tp_dealloc = (destructor)bell_dealloc,
    .tp_methods = bell_methods,
};
