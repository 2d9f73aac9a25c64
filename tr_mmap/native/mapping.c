/* Part of a file in memory, unmapped with the last view of it. Keeps no descriptor, unlike Python's mmap, and never
 * changes a file's size. */
#include "native.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RELEASE_GIL_NBYTES = 1 << 20 }; /* from here on unmapping takes long: 10 ms for 256 MiB of touched pages */

typedef struct {
    PyObject_HEAD
    char *address;
    Py_ssize_t nbytes;
    char is_writable;
    PyObject *kept; /* an object of Python's choice that lives as long as the mapping */
} Mapping;

static int mapping_traverse(Mapping *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
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
        PyObject *error = PyErr_GetRaisedException();
        Py_BEGIN_ALLOW_THREADS
        munmap(self->address, (size_t)self->nbytes);
        Py_END_ALLOW_THREADS
        PyErr_SetRaisedException(error);
    }
    free_object((PyObject *)self);
    Py_TRASHCAN_END
}

/* There is no bf_releasebuffer, so that the base of numpy's arrays is the mapping itself, not a memoryview of it. */
static int mapping_getbuffer(Mapping *self, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)self, self->address, self->nbytes, !self->is_writable, flags);
}

static PyMemberDef mapping_members[] = {
    {"kept", T_OBJECT, offsetof(Mapping, kept), 0, "an object that lives as long"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot mapping_slots[] = {
    {Py_tp_doc, "Part of a file in memory, unmapped with the last view of it."},
    {Py_tp_traverse, mapping_traverse},
    {Py_tp_clear, mapping_clear},
    {Py_tp_dealloc, mapping_dealloc},
    {Py_bf_getbuffer, mapping_getbuffer},
    {Py_tp_members, mapping_members},
    {0, NULL},
};

PyType_Spec mapping_spec = {
    .name = "tr_mmap.native.Mapping",
    .basicsize = sizeof(Mapping),
    .flags = TYPE_FLAGS | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = mapping_slots,
};

PyObject *map_part(const ModuleState *state, int fd, Py_ssize_t nbytes, Py_ssize_t offset, int is_writable,
                   int is_private) {
    Mapping *self = PyObject_GC_New(Mapping, state->mapping);
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

/* The argument of an ioctl of /proc/self/pagemap, which the headers of older systems lack; linux/fs.h explains it. */
typedef struct {
    uint64_t size, flags, start, end, walk_end, regions, regions_length, max_pages;
    uint64_t inverted, all_of, any_of, returned;
} PageScan;

typedef struct {
    uint64_t start, end, categories;
} PageRegion;

enum {
    SCAN_NBYTES = 256 << 10, /* from here on, the answer is worth two calls of the system and a look at each page */
    PAGE_IS_FILE = 1 << 2,
    PAGE_IS_PRESENT = 1 << 3,
    PAGE_IS_SWAPPED = 1 << 4,
};
#define SCAN_PAGES _IOWR('f', 16, PageScan)

int has_file_pages_only(const void *address, size_t nbytes) {
    if (nbytes < SCAN_NBYTES) return 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    PageRegion found;
    PageScan scan = {.size = sizeof scan, .start = (uintptr_t)address, .regions = (uintptr_t)&found, .regions_length = 1,
                     .max_pages = 1, .inverted = PAGE_IS_FILE, .all_of = PAGE_IS_FILE,
                     .any_of = PAGE_IS_PRESENT | PAGE_IS_SWAPPED, .returned = PAGE_IS_PRESENT};
    scan.end = scan.start + nbytes;
    int count = ioctl(fd, SCAN_PAGES, &scan);
    close(fd);
    return count == 0;
}

int is_mapping_with_kept(const ModuleState *state, PyObject *object) {
    return Py_IS_TYPE(object, state->mapping) && ((Mapping *)object)->kept != NULL;
}

const char map_file_doc[] =
    "map_file(fd, nbytes, offset, is_writable, is_private)\n--\n\n"
    "Map part of a file; unmapped with the last view of it.\n\n"
    "Raises:\n    OSError: it cannot be mapped.";

PyObject *py_map_file(PyObject *module, PyObject *arguments) {
    int fd, is_writable, is_private;
    Py_ssize_t nbytes, offset;
    if (!PyArg_ParseTuple(arguments, "innpp", &fd, &nbytes, &offset, &is_writable, &is_private)) return NULL;
    return map_part(state_of(module), fd, nbytes, offset, is_writable, is_private);
}
