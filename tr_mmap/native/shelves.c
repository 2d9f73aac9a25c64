/* The short cuts of a pool: what is like the last tensor needs no thought. Whatever is unlike it takes the long way. */
#include "shelves.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *condemned; /* a list: segments that nobody here holds, and that are not to be filled again */
    PyObject *free; /* a dict: capacity to the list of the free segments of that capacity; the last one is the warmest */
    PyObject *mark;
    uint64_t seq;
    Py_ssize_t takes, copied_nbytes;
    unsigned generation; /* of the process that the segments are of */
    char is_busy; /* a thread is on the long way, in the middle of anything */
} Shelves;

static int shelves_init(Shelves *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "", names)) return -1;
    self->generation = fork_generation;
    Py_XSETREF(self->condemned, PyList_New(0));
    Py_XSETREF(self->free, PyDict_New());
    Py_XSETREF(self->mark, PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type));
    return self->condemned == NULL || self->free == NULL || self->mark == NULL ? -1 : 0;
}

static int shelves_traverse(Shelves *self, visitproc visit, void *arg) {
    Py_VISIT(self->condemned);
    Py_VISIT(self->free);
    Py_VISIT(self->mark);
    return 0;
}

static int shelves_clear(Shelves *self) {
    Py_CLEAR(self->condemned);
    Py_CLEAR(self->free);
    Py_CLEAR(self->mark);
    return 0;
}

static void shelves_dealloc(Shelves *self) {
    PyObject_GC_UnTrack(self);
    shelves_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Take the warmest segment of a shelf, if it suits and nobody looks at it. */
typedef int (*Suits)(const Owned *segment, void *wanted);

/* The warmest segment of a shelf that suits, and that shelf; borrowed, and NULL if there is none. */
static Owned *find(const Shelves *self, Suits suits, void *wanted, PyObject **shelf) {
    PyObject *capacity;
    Py_ssize_t position = 0;
    while (self->free != NULL && PyDict_Next(self->free, &position, &capacity, shelf)) {
        Py_ssize_t count = PyList_CheckExact(*shelf) ? PyList_GET_SIZE(*shelf) : 0;
        PyObject *last = count == 0 ? NULL : PyList_GET_ITEM(*shelf, count - 1);
        if (last != NULL && PyObject_TypeCheck(last, &OwnedType) && suits((Owned *)last, wanted)) return (Owned *)last;
    }
    return NULL;
}

static Owned *take(Shelves *self, Suits suits, void *wanted) {
    PyObject *shelf;
    Owned *segment = find(self, suits, wanted, &shelf);
    if (segment == NULL || shut(segment->line.words, 0) != FREE) return NULL;
    Py_INCREF(segment);
    if (PyList_SetSlice(shelf, PyList_GET_SIZE(shelf) - 1, PyList_GET_SIZE(shelf), NULL) < 0) {
        Py_DECREF(segment);
        return NULL;
    }
    segment->last_take = ++self->takes;
    return segment;
}

static int is_like(const Owned *segment, void *array) {
    return segment->is_current && layout_fits(&segment->layout, array);
}

/* What somebody asks a loan of. */
typedef struct {
    int ndim;
    npy_intp dims[MAX_NDIM];
    PyObject *dtype;
} Wish;

static int add_size(Wish *wish, PyObject *size) {
    if (!PyLong_CheckExact(size) || wish->ndim == MAX_NDIM) return 0;
    npy_intp value = PyLong_AsSsize_t(size);
    if (value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    wish->dims[wish->ndim++] = value;
    return 1;
}

/* A shape in its plainest forms, which cannot run anybody's code: an int, or a tuple of ints. */
static int read_wish(Wish *wish, PyObject *shape, PyObject *dtype) {
    wish->ndim = 0;
    wish->dtype = dtype;
    if (!PyTuple_CheckExact(shape)) return add_size(wish, shape);
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(shape); index++)
        if (!add_size(wish, PyTuple_GET_ITEM(shape, index))) return 0;
    return 1;
}

static int is_what_was_asked(const Owned *segment, void *wanted) {
    const Wish *wish = wanted;
    if (segment->laid_out == NULL || segment->asked == NULL || segment->layout.ndim != wish->ndim) return 0;
    for (int index = 0; index < wish->ndim; index++)
        if (segment->layout.dims[index] != wish->dims[index]) return 0;
    if (segment->asked == wish->dtype) return 1;
    return PyUnicode_CheckExact(segment->asked) && PyUnicode_CheckExact(wish->dtype) &&
           PyUnicode_Compare(segment->asked, wish->dtype) == 0;
}

static int is_passable(const Shelves *self) {
    return self->condemned != NULL && PyList_GET_SIZE(self->condemned) == 0 && !self->is_busy &&
           self->generation == fork_generation;
}

static void publish(Shelves *self, Owned *segment) {
    segment->seq = ++self->seq;
    stamp(segment->line.words, segment->seq);
}

/* A loan of ours, as it was handed out. */
static int is_loan(const Shelves *self, const Owned *segment, PyObject *array) {
    return segment->mark == self->mark && segment->is_current && owned_is_whole(segment, array);
}

/* If no other view can write to it, it is stamped where it lies. */
static int publish_loan(Shelves *self, Owned *segment, PyObject *array) {
    if (!is_loan(self, segment, array)) return 0;
    if (!segment->is_sent) {
        if (seal_loan(array)) return 0;
        publish(self, segment);
        segment->is_sent = 1;
    }
    segment->holds++;
    return 1;
}

PyDoc_STRVAR(next_seq_doc, "next_seq()\n--\n\nThe number of the next tensor to be published, which no other will have.");

static PyObject *next_seq(Shelves *self, PyObject *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(++self->seq);
}

PyDoc_STRVAR(publish_again_doc,
             "publish_again(tensor)\n--\n\nPublish an array that is like the last one, or a loan as it was handed out.\n\nReturns:\n"
             "    Its segment, held once more; None if that needs more thought, and then nothing was published.");

int may_publish_again(PyObject *shelves, PyObject *array) {
    Shelves *self = (Shelves *)shelves;
    if (!PyArray_CheckExact(array) || !is_passable(self)) return 0;
    PyObject *shelf;
    Owned *segment = owner_of(array);
    if (segment == NULL) return find(self, is_like, array, &shelf) != NULL;
    return is_loan(self, segment, array);
}

PyObject *publish_again(PyObject *shelves, PyObject *array) {
    Shelves *self = (Shelves *)shelves;
    if (!PyArray_CheckExact(array) || !is_passable(self)) Py_RETURN_NONE;
    Owned *segment = owner_of(array);
    if (segment != NULL) {
        if (!publish_loan(self, segment, array)) Py_RETURN_NONE;
        return Py_NewRef(segment);
    }
    segment = take(self, is_like, array);
    if (segment == NULL) {
        if (PyErr_Occurred()) return NULL;
        Py_RETURN_NONE;
    }
    segment->holds = 1;
    copy_memory((char *)segment->line.buffer.buf + segment->layout.offset, PyArray_DATA((PyArrayObject *)array),
                segment->layout.nbytes);
    if (PyErr_CheckSignals() < 0) { /* now, for nobody could give back what a handler makes us lose */
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        if (owned_release(segment) < 0) PyErr_WriteUnraisable((PyObject *)segment);
        PyErr_Restore(type, value, trace);
        Py_DECREF(segment);
        return NULL;
    }
    self->copied_nbytes += segment->layout.nbytes;
    publish(self, segment);
    return (PyObject *)segment;
}

PyDoc_STRVAR(lend_again_doc,
             "lend_again(shape, dtype)\n--\n\nLend a segment that was lent for just such a wish before.\n\nReturns:\n"
             "    The array; None if there is no such segment.");

static PyObject *lend_again(Shelves *self, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "lend_again takes a shape and a dtype");
        return NULL;
    }
    Wish wish;
    if (!is_passable(self) || !read_wish(&wish, arguments[0], arguments[1])) Py_RETURN_NONE;
    Owned *segment = take(self, is_what_was_asked, &wish);
    if (segment == NULL) {
        if (PyErr_Occurred()) return NULL;
        Py_RETURN_NONE;
    }
    PyObject *array = owned_lend(segment);
    Py_DECREF(segment);
    return array;
}

static PyMethodDef shelves_methods[] = {
    {"next_seq", (PyCFunction)next_seq, METH_NOARGS, next_seq_doc},
    {"publish_again", publish_again, METH_O, publish_again_doc},
    {"lend_again", (PyCFunction)(void (*)(void))lend_again, METH_FASTCALL, lend_again_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef shelves_members[] = {
    {"condemned", T_OBJECT, offsetof(Shelves, condemned), READONLY, NULL},
    {"free", T_OBJECT, offsetof(Shelves, free), READONLY, NULL},
    {"mark", T_OBJECT, offsetof(Shelves, mark), READONLY, NULL},
    {"is_busy", T_BOOL, offsetof(Shelves, is_busy), 0, NULL},
    {"seq", T_ULONGLONG, offsetof(Shelves, seq), 0, NULL},
    {"takes", T_PYSSIZET, offsetof(Shelves, takes), 0, NULL},
    {"copied_nbytes", T_PYSSIZET, offsetof(Shelves, copied_nbytes), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject ShelvesType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Shelves",
    .tp_doc = "Shelves()\n--\n\nThe free segments of a pool, and its counters.",
    .tp_basicsize = sizeof(Shelves),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)shelves_init,
    .tp_traverse = (traverseproc)shelves_traverse,
    .tp_clear = (inquiry)shelves_clear,
    .tp_dealloc = (destructor)shelves_dealloc,
    .tp_free = PyObject_GC_Del,
    .tp_methods = shelves_methods,
    .tp_members = shelves_members,
};
