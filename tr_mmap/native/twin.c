/* The type Twin. Knows no segments.
 *
 * A mapping moves by mremap(2). Where it moves to a fixed address, the kernel may have unmapped what was there before it
 * finds that it cannot: so whatever may fail for want of room is done first, at an address of the kernel's choice. */
#include "twin.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4 /* linux/mman.h, 5.7; of files since 5.13 */
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* What the kernel has in one table of pages. It moves whole tables, not pages, between addresses that lie alike in theirs. */
enum { TABLE_NBYTES = 2 << 20 };

typedef struct {
    PyObject_HEAD
    Py_buffer place;
    char *aside; /* where the mapping waits while the twin is at its place, else NULL */
    char *twin;  /* a mapping into which nothing is ever stored: the one that comes is made of it */
} Twin;

/* Where the kernel likes. It looks at the last argument, which some C libraries pass on as they find it. */
static void *move_anywhere(void *from, size_t nbytes) {
    return mremap(from, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
}

/* Whether this kernel moves mappings of files and leaves an empty one behind: tried once, with pages of our own. */
static int can_move_files(int fd, off_t offset, size_t page) {
    static int can; /* 0: not tried; whichever thread is first, finds the same */
    if (can != 0) return can > 0;
    void *shared = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    void *moved = shared == MAP_FAILED ? MAP_FAILED : move_anywhere(shared, page);
    if (shared != MAP_FAILED && (moved != MAP_FAILED || errno == EINVAL)) can = moved != MAP_FAILED ? 1 : -1;
    if (moved != MAP_FAILED) munmap(moved, page);
    if (shared != MAP_FAILED) munmap(shared, page);
    return can > 0;
}

/* An address of `nbytes` that nobody else will get, which lies in its table as the place does; NULL if there is none. */
static char *reserve(const char *place, size_t nbytes) {
    size_t around = nbytes + TABLE_NBYTES;
    char *first = mmap(NULL, around, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (first == MAP_FAILED) return NULL;
    char *aside = first + ((uintptr_t)place - (uintptr_t)first) % TABLE_NBYTES;
    if (aside != first) munmap(first, (size_t)(aside - first));
    if (aside + nbytes != first + around) munmap(aside + nbytes, (size_t)(first + around - (aside + nbytes)));
    return aside;
}

/* Undo reserve() after a move to there has failed. It may have left a hole, which may be another thread's by now: what is
 * not sure to be ours stays as it is, and costs addresses only. */
static void give_up(char *aside, size_t nbytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    void *again = mmap(aside, nbytes, PROT_NONE, flags, -1, 0);
    if (again != MAP_FAILED) munmap(again, nbytes);
}

int is_twin(const ModuleState *state, PyObject *object) { return object != NULL && Py_IS_TYPE(object, state->twin); }

int twin_is_there(PyObject *twin) { return ((Twin *)twin)->aside != NULL; }

int twin_come(PyObject *object) {
    Twin *self = (Twin *)object;
    char *place = self->place.buf;
    size_t nbytes = (size_t)self->place.len;
    if (self->aside != NULL) return 1;
    char *comes = move_anywhere(self->twin, nbytes);
    if (comes == MAP_FAILED) return 0;
    char *aside = reserve(place, nbytes);
    /* An empty mapping of the file stays at the place, so that a thread that stores there meanwhile reaches the file. */
    if (aside == NULL ||
        mremap(place, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, aside) == MAP_FAILED) {
        if (aside != NULL) give_up(aside, nbytes);
        munmap(comes, nbytes);
        return 0;
    }
    if (mremap(comes, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) { /* needs no room */
        munmap(comes, nbytes);
        if (mremap(aside, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) munmap(aside, nbytes);
        return 0;
    }
    self->aside = aside;
    return 1;
}

int twin_go(PyObject *object) {
    Twin *self = (Twin *)object;
    size_t nbytes = (size_t)self->place.len;
    if (self->aside == NULL) return 1;
    if (mremap(self->aside, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED, self->place.buf) == MAP_FAILED) return 0;
    self->aside = NULL;
    return 1;
}

static void twin_dealloc(Twin *self) {
    size_t nbytes = (size_t)self->place.len;
    twin_go((PyObject *)self);
    if (self->aside != NULL) munmap(self->aside, nbytes);
    if (self->twin != NULL) munmap(self->twin, nbytes);
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

const char make_twin_doc[] =
    "make_twin(place, fd, offset)\n--\n\nMake the copy-on-write twin of a mapping.\n\n"
    "Args:\n    place: the mapping, whole pages, shared and writable.\n    fd: the file, open for writing.\n"
    "    offset: where in the file the mapping begins.\n\n"
    "Returns:\n    The twin; None where the kernel cannot move mappings of files, and in plain Python.\n\n"
    "Raises:\n    ValueError: the place is not whole pages.\n    OSError: there is no room for it.";

PyObject *py_make_twin(PyObject *module, PyObject *arguments) {
    const ModuleState *state = state_of(module);
    PyObject *place;
    int fd;
    Py_ssize_t offset;
    if (!PyArg_ParseTuple(arguments, "Oin", &place, &fd, &offset)) return NULL;
    Twin *self = PyObject_New(Twin, state->twin);
    if (self == NULL) return NULL;
    self->aside = self->twin = NULL;
    if (get_writable_buffer(place, &self->place) < 0) {
        self->place = (Py_buffer){.obj = NULL};
        Py_DECREF(self);
        return NULL;
    }
    size_t nbytes = (size_t)self->place.len, page = (size_t)sysconf(_SC_PAGESIZE);
    if (nbytes == 0 || nbytes % page != 0 || (uintptr_t)self->place.buf % page != 0) {
        PyErr_SetString(PyExc_ValueError, "the place of a twin is whole pages");
        Py_DECREF(self);
        return NULL;
    }
    if (!can_move_files(fd, (off_t)offset, page)) {
        Py_DECREF(self);
        Py_RETURN_NONE;
    }
    void *twin = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, (off_t)offset);
    if (twin != MAP_FAILED) {
        self->twin = twin;
        return (PyObject *)self;
    }
    PyErr_SetFromErrno(PyExc_OSError);
    Py_DECREF(self);
    return NULL;
}
