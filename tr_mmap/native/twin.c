/* The type Twin. Knows no segments. */
#include "twin.h"

#include <sys/mman.h>
#include <unistd.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4 /* linux/mman.h, 5.7; of files since 5.13 */
#endif

/* What the kernel has in one table of pages. It moves whole tables, not pages, between addresses that lie alike in theirs. */
enum { TABLE_NBYTES = 2 << 20 };

typedef struct {
    PyObject_HEAD
    Py_buffer place;
    char *aside;          /* where the first mapping waits */
    char *own;            /* where the twin waits */
    char *reserved;       /* addresses around `aside` */
    size_t reserved_nbytes;
    char is_there;        /* the twin is at the place */
} Twin;

/* Move a mapping with its pages. Where it was, an empty one of the same kind stays: so nobody else's comes there. */
static int move(char *from, char *to, size_t nbytes) {
    return mremap(from, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) != MAP_FAILED;
}

int twin_come(PyObject *twin) {
    Twin *self = (Twin *)twin;
    char *place = self->place.buf;
    size_t nbytes = (size_t)self->place.len;
    if (self->is_there) return 1;
    if (!move(place, self->aside, nbytes)) return 0;
    if (move(self->own, place, nbytes)) return self->is_there = 1;
    move(self->aside, place, nbytes); /* should this fail, too: the place shows the same file, and has to fault it in */
    return 0;
}

int twin_go(PyObject *twin) {
    Twin *self = (Twin *)twin;
    char *place = self->place.buf;
    size_t nbytes = (size_t)self->place.len;
    if (!self->is_there) return 1;
    if (madvise(place, nbytes, MADV_DONTNEED) != 0 || !move(place, self->own, nbytes)) return 0;
    if (!move(self->aside, place, nbytes)) { /* the twin has left an empty one like itself there */
        move(self->own, place, nbytes);
        return 0;
    }
    self->is_there = 0;
    return 1;
}

static void twin_dealloc(Twin *self) {
    twin_go((PyObject *)self);
    if (self->reserved != NULL) munmap(self->reserved, self->reserved_nbytes);
    if (self->own != NULL) munmap(self->own, (size_t)self->place.len);
    if (self->place.obj != NULL) PyBuffer_Release(&self->place);
    free_object((PyObject *)self);
}

static PyType_Slot twin_slots[] = {
    {Py_tp_doc, "The copy-on-write twin of a mapping."},
    {Py_tp_dealloc, twin_dealloc},
    {0, NULL},
};

PyType_Spec twin_spec = {
    .name = "tr_mmap.native.Twin",
    .basicsize = sizeof(Twin),
    .flags = TYPE_FLAGS | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = twin_slots,
};

int is_twin(const ModuleState *state, PyObject *object) { return object != NULL && Py_IS_TYPE(object, state->twin); }

const char make_twin_doc[] =
    "make_twin(place, fd, offset)\n--\n\nMake the copy-on-write twin of a mapping.\n\n"
    "Args:\n    place: the mapping, whole pages, shared and writable.\n    fd: the file.\n"
    "    offset: where in the file the mapping begins.\n\n"
    "Returns:\n    The twin; None in plain Python.\n\n"
    "Raises:\n    ValueError: the place is not whole pages.\n    OSError: there is no room for it.";

PyObject *py_make_twin(PyObject *module, PyObject *arguments) {
    const ModuleState *state = state_of(module);
    PyObject *place;
    int fd;
    Py_ssize_t offset;
    if (!PyArg_ParseTuple(arguments, "Oin", &place, &fd, &offset)) return NULL;
    Twin *self = PyObject_New(Twin, state->twin);
    if (self == NULL) return NULL;
    memset((char *)self + offsetof(Twin, place), 0, sizeof *self - offsetof(Twin, place));
    if (get_writable_buffer(place, &self->place) < 0) {
        self->place.obj = NULL;
        Py_DECREF(self);
        return NULL;
    }
    size_t nbytes = (size_t)self->place.len, page = (size_t)sysconf(_SC_PAGESIZE);
    if (nbytes == 0 || nbytes % page != 0 || (uintptr_t)self->place.buf % page != 0) {
        PyErr_SetString(PyExc_ValueError, "the place of a twin is whole pages");
        Py_DECREF(self);
        return NULL;
    }
    void *reserved = mmap(NULL, nbytes + TABLE_NBYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved != MAP_FAILED) {
        self->reserved = reserved;
        self->reserved_nbytes = nbytes + TABLE_NBYTES;
        uintptr_t shift = (uintptr_t)self->place.buf - (uintptr_t)reserved;
        self->aside = self->reserved + shift % TABLE_NBYTES;
        int flags = MAP_PRIVATE | MAP_NORESERVE;
        void *own = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);
        if (own != MAP_FAILED) {
            self->own = own;
            return (PyObject *)self;
        }
    }
    PyErr_SetFromErrno(PyExc_OSError);
    Py_DECREF(self);
    return NULL;
}
