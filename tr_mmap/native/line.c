/* The live line, as both sides see it. */
#include "line.h"

int line_init(Line *self, PyObject *source) {
    if (self->words != NULL) {
        PyErr_SetString(PyExc_ValueError, "a line is made once");
        return -1;
    }
    if (hold_buffer(source, &self->buffer, LINE_OFFSET + LINE_NBYTES) < 0) return -1;
    self->words = (Words *)((char *)self->buffer.buf + LINE_OFFSET);
    return 0;
}

void line_clear(Line *self) {
    if (self->words != NULL) PyBuffer_Release(&self->buffer);
    self->words = NULL;
}

int line_is_made(Line *self) {
    if (self->words != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "the line has no buffer");
    return 0;
}

static int line_new(Line *self, PyObject *arguments, PyObject *keywords) {
    PyObject *source;
    static char *names[] = {"buffer", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O", names, &source)) return -1;
    return line_init(self, source);
}

static void line_dealloc(Line *self) {
    line_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyDoc_STRVAR(claim_doc, "claim()\n--\n\nOwner: let nobody enter any more; the lease as it stands, or 2 if a guest came.");

static PyObject *line_claim(Line *self, PyObject *unused) {
    (void)unused;
    return line_is_made(self) ? PyLong_FromUnsignedLongLong(shut(self->words, 0)) : NULL;
}

PyDoc_STRVAR(stamp_doc, "stamp(seq)\n--\n\nOwner: publish what is in the segment under a number.");

static PyObject *line_stamp(Line *self, PyObject *argument) {
    if (!line_is_made(self)) return NULL;
    uint64_t seq = PyLong_AsUnsignedLongLong(argument);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    stamp(self->words, seq);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(retire_doc, "retire()\n--\n\nOwner: give the segment up; the lease as it stands, or 2 if a guest came.");

static PyObject *line_retire(Line *self, PyObject *unused) {
    (void)unused;
    if (!line_is_made(self)) return NULL;
    __atomic_store_n(&self->words->seq_copy, RETIRED, __ATOMIC_RELAXED);
    return PyLong_FromUnsignedLongLong(shut(self->words, RETIRED));
}

PyDoc_STRVAR(enter_doc, "enter(seq)\n--\n\nReader: hold the lease; which layout it is, or 0 if it is another tensor by now.");

static PyObject *line_enter(Line *self, PyObject *argument) {
    if (!line_is_made(self)) return NULL;
    uint64_t wanted = seq_of(argument);
    if (wanted == UINT64_MAX && PyErr_Occurred()) return NULL;
    return PyLong_FromUnsignedLongLong(enter(self->words, wanted));
}

static PyMethodDef line_methods[] = {
    {"claim", (PyCFunction)line_claim, METH_NOARGS, claim_doc},
    {"stamp", (PyCFunction)line_stamp, METH_O, stamp_doc},
    {"retire", (PyCFunction)line_retire, METH_NOARGS, retire_doc},
    {"enter", (PyCFunction)line_enter, METH_O, enter_doc},
    {NULL, NULL, 0, NULL},
};

PyTypeObject LineType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Line",
    .tp_doc = "Line(buffer)\n--\n\nThe live line of the segment that a writable buffer begins with.",
    .tp_basicsize = sizeof(Line),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)line_new,
    .tp_dealloc = (destructor)line_dealloc,
    .tp_methods = line_methods,
};
