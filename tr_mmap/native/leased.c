/* A segment as its reader sees it: views of it, and the lease that is held for as long as one of them lives. */
#include "arrays.h"
#include "line.h"

#include <structmember.h>

typedef struct {
    Line line;
    Py_buffer file; /* the whole file, mapped for reading */
    Layout layout;
    uint64_t layout_seq;  /* which layout that is; 0 for none */
    Py_ssize_t views;
    PyObject *spare;      /* a copy-on-write mapping of the file that no view uses any more, or None */
    unsigned generation;  /* of the process that the lease is of */
    char is_pinned;       /* a child of ours may look at it for ever */
} Leased;

/* What an array over a segment keeps alive: its end is that of the view. */
typedef struct {
    PyObject_HEAD
    Leased *segment;
    PyObject *mapping; /* the copy-on-write mapping that the view is over; NULL for the shared one */
} Hold;

unsigned fork_generation = 0;

void forked_in_child(void) { fork_generation++; }

/* Give the lease back if no view is left. */
static void rest(Leased *self) {
    if (self->views == 0 && self->generation == fork_generation)
        store_release(&self->line.words->lease, self->is_pinned ? PINNED : FREE); /* after the loads through the views */
}

static void hold_dealloc(Hold *self) {
    Leased *segment = self->segment;
    segment->views--;
    rest(segment);
    if (self->mapping != NULL && (segment->spare == NULL || segment->spare == Py_None))
        Py_XSETREF(segment->spare, self->mapping);
    else
        Py_XDECREF(self->mapping);
    Py_DECREF(segment);
    PyObject_Free(self);
}

PyTypeObject HoldType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Hold",
    .tp_doc = "The base of an array over a segment of the peer's; the segment is not filled again while it lives.",
    .tp_basicsize = sizeof(Hold),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)hold_dealloc,
};

static int leased_init(Leased *self, PyObject *arguments, PyObject *keywords) {
    PyObject *head, *file;
    static char *names[] = {"head", "file", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO", names, &head, &file)) return -1;
    if (line_init(&self->line, head) < 0) return -1;
    if (PyObject_GetBuffer(file, &self->file, PyBUF_SIMPLE) < 0) {
        line_clear(&self->line);
        return -1;
    }
    self->generation = fork_generation;
    return 0;
}

static void leased_dealloc(Leased *self) {
    if (self->line.words != NULL) PyBuffer_Release(&self->file);
    line_clear(&self->line);
    Py_CLEAR(self->layout.dtype);
    Py_CLEAR(self->spare);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyDoc_STRVAR(learn_doc,
             "learn(layout_seq, dtype, shape, offset)\n--\n\nWhat the header says, under the number of its layout.\n\n"
             "Raises:\n    ValueError: the tensor does not fit into the file.");

static PyObject *leased_learn(Leased *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!line_is_made(&self->line)) return NULL;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "learn takes a number, a dtype, a shape and an offset");
        return NULL;
    }
    self->layout_seq = 0;
    uint64_t layout_seq = PyLong_AsUnsignedLongLong(arguments[0]);
    if (layout_seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    if (layout_set(&self->layout, arguments[1], arguments[2], arguments[3], self->file.len) < 0) return NULL;
    self->layout_seq = layout_seq;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(view_doc,
             "view(seq, mapping=None)\n--\n\nAn array over the tensor; the lease is held while it lives, or a view of it.\n\n"
             "Args:\n    seq: the number that the tensor was published under.\n    mapping: a copy-on-write mapping of the file, which the array is to be "
             "over; it becomes the spare one when the array is gone.\n\nReturns:\n    None if its layout is not the one that was learnt.\n\nRaises:\n    LookupError: it is another tensor by now.");

/* An array over the tensor, in the shared mapping or a private one; NULL without an exception where its layout is not
 * the one that was learnt. */
static PyObject *look(Leased *self, uint64_t wanted, PyObject *mapping, char *file) {
    uint64_t layout_seq = enter(self->line.words, wanted);
    Hold *hold = NULL;
    if (layout_seq == 0)
        PyErr_SetString(PyExc_LookupError, "another tensor is there by now");
    else if (layout_seq == self->layout_seq)
        hold = PyObject_New(Hold, &HoldType);
    if (hold == NULL) {
        rest(self);
        return NULL;
    }
    hold->segment = (Leased *)Py_NewRef(self);
    hold->mapping = Py_XNewRef(mapping);
    self->views++;
    return layout_view(&self->layout, file, mapping != NULL, (PyObject *)hold);
}

PyObject *leased_look(PyObject *segment, uint64_t wanted) {
    Leased *self = (Leased *)segment;
    return self->line.words == NULL ? NULL : look(self, wanted, NULL, self->file.buf);
}

static PyObject *leased_view(Leased *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!line_is_made(&self->line)) return NULL;
    if (count != 1 && count != 2) {
        PyErr_SetString(PyExc_TypeError, "view takes a number, and perhaps a mapping");
        return NULL;
    }
    uint64_t wanted = seq_of(arguments[0]);
    if (wanted == UINT64_MAX && PyErr_Occurred()) return NULL;
    PyObject *mapping = count == 2 && arguments[1] != Py_None ? arguments[1] : NULL;
    char *file = self->file.buf;
    if (mapping != NULL) {
        Py_buffer private;
        if (PyObject_GetBuffer(mapping, &private, PyBUF_WRITABLE) < 0) return NULL;
        file = private.len == self->file.len ? private.buf : NULL;
        PyBuffer_Release(&private); /* the mapping stays where it is for as long as it lives */
        if (file == NULL) {
            PyErr_SetString(PyExc_ValueError, "the mapping is not of the whole file");
            return NULL;
        }
    }
    PyObject *array = look(self, wanted, mapping, file);
    return array == NULL && !PyErr_Occurred() ? Py_NewRef(Py_None) : array;
}

static PyMethodDef leased_methods[] = {
    {"learn", (PyCFunction)(void (*)(void))leased_learn, METH_FASTCALL, learn_doc},
    {"view", (PyCFunction)(void (*)(void))leased_view, METH_FASTCALL, view_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef leased_members[] = {
    {"views", T_PYSSIZET, offsetof(Leased, views), READONLY, "how many arrays there are"},
    {"spare", T_OBJECT, offsetof(Leased, spare), 0, "a copy-on-write mapping that no view uses any more"},
    {"is_pinned", T_BOOL, offsetof(Leased, is_pinned), 0, "whether the lease is never to be given back"},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject LeasedType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Leased",
    .tp_doc = "Leased(head, file)\n--\n\nA segment as its reader sees it.",
    .tp_basicsize = sizeof(Leased),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_base = &LineType,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)leased_init,
    .tp_dealloc = (destructor)leased_dealloc,
    .tp_methods = leased_methods,
    .tp_members = leased_members,
};
