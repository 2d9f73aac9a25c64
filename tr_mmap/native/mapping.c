/* Part of a file in memory, unmapped with the last view of it. Keeps no descriptor, unlike Python's mmap, and never
 * changes a file's size. */
#include "native.h"

#include <structmember.h>
#include <sys/mman.h>

enum { RELEASE_GIL_NBYTES = 1 << 20 }; /* from here on unmapping takes long: 10 ms for 256 MiB of touched pages */

typedef struct {
    PyObject_HEAD
    char *address;
    Py_ssize_t nbytes;
    char is_writable;
    PyObject *kept; /* an object of Python's choice that lives as long as the mapping */
} Mapping;

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
    Py_TRASHCAN_BEGIN(self, mapping_dealloc)
    mapping_clear(self);
    if (self->address != NULL && self->nbytes < RELEASE_GIL_NBYTES) {
        munmap(self->address, (size_t)self->nbytes);
    } else if (self->address != NULL) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        Py_BEGIN_ALLOW_THREADS
        munmap(self->address, (size_t)self->nbytes);
        Py_END_ALLOW_THREADS
        PyErr_Restore(type, value, trace);
    }
    PyObject_GC_Del(self);
    Py_TRASHCAN_END
}

/* There is no bf_releasebuffer, so that the base of numpy's arrays is the mapping itself, not a memoryview of it. */
static int mapping_getbuffer(Mapping *self, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)self, self->address, self->nbytes, !self->is_writable, flags);
}

static PyBufferProcs mapping_buffer = {.bf_getbuffer = (getbufferproc)mapping_getbuffer};

static PyMemberDef mapping_members[] = {
    {"kept", T_OBJECT, offsetof(Mapping, kept), 0, "an object that lives as long"},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject MappingType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Mapping",
    .tp_doc = "Part of a file in memory, unmapped with the last view of it.",
    .tp_basicsize = sizeof(Mapping),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_traverse = (traverseproc)mapping_traverse,
    .tp_clear = (inquiry)mapping_clear,
    .tp_dealloc = (destructor)mapping_dealloc,
    .tp_as_buffer = &mapping_buffer,
    .tp_members = mapping_members,
};

PyObject *map_part(int fd, Py_ssize_t nbytes, Py_ssize_t offset, int is_writable, int is_private) {
    Mapping *self = PyObject_GC_New(Mapping, &MappingType);
    if (self == NULL) return NULL;
    self->address = NULL;
    self->kept = NULL;
    self->nbytes = nbytes;
    self->is_writable = (char)is_writable;
    /* No memory is reserved for a private mapping, which may be larger than the memory: few stores reach its pages. */
    int flags = is_private ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
    int protection = is_writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void *address = mmap(NULL, (size_t)nbytes, protection, flags, fd, (off_t)offset);
    if (address == MAP_FAILED) PyErr_SetFromErrno(PyExc_OSError);
    else self->address = address;
    PyObject_GC_Track(self);
    if (address == MAP_FAILED) Py_CLEAR(self);
    return (PyObject *)self;
}

const char map_file_doc[] =
    "map_file(fd, nbytes, offset, is_writable, is_private)\n--\n\n"
    "Map part of a file; unmapped with the last view of it.\n\n"
    "Raises:\n    OSError: it cannot be mapped.";

PyObject *py_map_file(PyObject *module, PyObject *arguments) {
    (void)module;
    int fd, is_writable, is_private;
    Py_ssize_t nbytes, offset;
    if (!PyArg_ParseTuple(arguments, "innpp", &fd, &nbytes, &offset, &is_writable, &is_private)) return NULL;
    return map_part(fd, nbytes, offset, is_writable, is_private);
}
