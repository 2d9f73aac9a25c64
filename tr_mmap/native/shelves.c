/* The short cuts of a pool: what is like the last tensor needs no thought. Whatever is unlike it takes the long way. */
#include "owned.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *free; /* a dict: capacity to the list of the free segments of that capacity; the last one is the warmest */
    PyObject *mark;
    uint64_t seq;
    Py_ssize_t takes, copied_nbytes;
} Shelves;

static int shelves_init(Shelves *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "", names)) return -1;
    Py_XSETREF(self->free, PyDict_New());
    Py_XSETREF(self->mark, PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type));
    return self->free == NULL || self->mark == NULL ? -1 : 0;
}

static int shelves_traverse(Shelves *self, visitproc visit, void *arg) {
    Py_VISIT(self->free);
    Py_VISIT(self->mark);
    return 0;
}

static int shelves_clear(Shelves *self) {
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
typedef int (*Suits)(const Owned *segment, PyObject *wanted);

static Owned *take(Shelves *self, Suits suits, PyObject *wanted) {
    PyObject *capacity, *shelf;
    Py_ssize_t position = 0;
    while (self->free != NULL && PyDict_Next(self->free, &position, &capacity, &shelf)) {
        Py_ssize_t count = PyList_CheckExact(shelf) ? PyList_GET_SIZE(shelf) : 0;
        if (count == 0) continue;
        PyObject *last = PyList_GET_ITEM(shelf, count - 1);
        if (!PyObject_TypeCheck(last, &OwnedType) || !suits((Owned *)last, wanted)) continue;
        if (shut(((Owned *)last)->line.words, 0) != FREE) return NULL;
        Owned *segment = (Owned *)Py_NewRef(last);
        if (PyList_SetSlice(shelf, count - 1, count, NULL) < 0) {
            Py_DECREF(segment);
            return NULL;
        }
        segment->last_take = ++self->takes;
        return segment;
    }
    return NULL;
}

static int is_like(const Owned *segment, PyObject *array) {
    return segment->is_current && layout_fits(&segment->layout, array);
}

static int is_laid_out(const Owned *segment, PyObject *layout) { return segment->laid_out == layout; }

static void publish(Shelves *self, Owned *segment) {
    segment->seq = ++self->seq;
    stamp(segment->line.words, segment->seq);
}

/* A loan as it was handed out, to which no other view can write: stamped where it lies. */
static int publish_loan(Shelves *self, Owned *segment, PyObject *array) {
    if (segment->mark != self->mark || !segment->is_current || !owned_is_whole(segment, array)) return 0;
    if (!segment->is_sent) {
        if (seal_loan(array)) return 0;
        publish(self, segment);
        segment->is_sent = 1;
    }
    segment->holds++;
    return 1;
}

PyDoc_STRVAR(publish_again_doc,
             "publish_again(tensor)\n--\n\nPublish an array that is like the last one, or a loan as it was handed out.\n\nReturns:\n"
             "    Its segment, held once more; None if that needs more thought, and then nothing was published.");

static PyObject *publish_again(Shelves *self, PyObject *array) {
    if (!PyArray_CheckExact(array)) Py_RETURN_NONE;
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
             "lend_again(layout)\n--\n\nLend a segment that is laid out like that, which means by the very same tuple.\n\nReturns:\n"
             "    The array; None if there is no such segment.");

static PyObject *lend_again(Shelves *self, PyObject *layout) {
    Owned *segment = take(self, is_laid_out, layout);
    if (segment == NULL) {
        if (PyErr_Occurred()) return NULL;
        Py_RETURN_NONE;
    }
    PyObject *array = owned_lend(segment);
    Py_DECREF(segment);
    return array;
}

static PyMethodDef shelves_methods[] = {
    {"publish_again", (PyCFunction)publish_again, METH_O, publish_again_doc},
    {"lend_again", (PyCFunction)lend_again, METH_O, lend_again_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef shelves_members[] = {
    {"free", T_OBJECT, offsetof(Shelves, free), READONLY, NULL},
    {"mark", T_OBJECT, offsetof(Shelves, mark), READONLY, NULL},
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
