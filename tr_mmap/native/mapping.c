/* Part of a file in memory, unmapped when nobody looks at it any more. Keeps no descriptor, unlike Python's own. */
#include "native.h"

#include <structmember.h>
#include <sys/mman.h>

typedef struct {
    PyObject_HEAD
    char *address;
    Py_ssize_t nbytes;
    char is_writable;
    PyObject *kept; /* whatever is to live as long */
} Mapping;

static int mapping_init(Mapping *self, PyObject *arguments, PyObject *keywords) {
    int fd, is_writable, is_private;
    Py_ssize_t nbytes;
    long long offset;
    static char *names[] = {"fd", "nbytes", "offset", "is_writable", "is_private", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "inLpp", names, &fd, &nbytes, &offset, &is_writable, &is_private))
        return -1;
    if (self->address != NULL || nbytes <= 0) {
        PyErr_SetString(PyExc_ValueError, "a mapping is made once, of at least one byte");
        return -1;
    }
    int flags = is_private ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
    void *address = mmap(NULL, (size_t)nbytes, is_writable ? PROT_READ | PROT_WRITE : PROT_READ, flags, fd, (off_t)offset);
    if (address == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    self->address = address;
    self->nbytes = nbytes;
    self->is_writable = (char)is_writable;
    return 0;
}

static int mapping_traverse(Mapping *self, visitproc visit, void *arg) {
    Py_VISIT(self->kept);
    return 0;
}

static int mapping_clear(Mapping *self) {
    Py_CLEAR(self->kept);
    return 0;
}

static void mapping_dealloc(Mapping *self) {
    PyObject_GC_UnTrack(self);
    mapping_clear(self);
    if (self->address != NULL) munmap(self->address, (size_t)self->nbytes);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Without a release, so that numpy's arrays keep the mapping itself, and no memoryview of it. */
static int mapping_getbuffer(Mapping *self, Py_buffer *view, int flags) {
    if (self->address == NULL) {
        PyErr_SetString(PyExc_ValueError, "nothing is mapped");
        return -1;
    }
    return PyBuffer_FillInfo(view, (PyObject *)self, self->address, self->nbytes, !self->is_writable, flags);
}

static PyBufferProcs mapping_buffer = {.bf_getbuffer = (getbufferproc)mapping_getbuffer};

static PyMemberDef mapping_members[] = {
    {"kept", T_OBJECT, offsetof(Mapping, kept), 0, "whatever is to live as long"},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject MappingType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Mapping",
    .tp_doc = "Mapping(fd, nbytes, offset, is_writable, is_private)\n--\n\nPart of a file in memory, unmapped with the last view of it.",
    .tp_basicsize = sizeof(Mapping),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)mapping_init,
    .tp_traverse = (traverseproc)mapping_traverse,
    .tp_clear = (inquiry)mapping_clear,
    .tp_dealloc = (destructor)mapping_dealloc,
    .tp_free = PyObject_GC_Del,
    .tp_as_buffer = &mapping_buffer,
    .tp_members = mapping_members,
};
