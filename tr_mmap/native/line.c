/* The live line of a segment's header: the words that its owner and its reader coordinate through. */
#include "native.h"

#include <stddef.h>

/* As segments/layout.py and the docstring of tr_mmap.tsr have it, from byte 64 of the file on. */
enum { LINE_OFFSET = 64, LINE_NBYTES = 64 };

typedef struct {
    uint64_t seq, layout, lease, guest, unused[3], seq_copy;
} Words;

_Static_assert(sizeof(Words) == LINE_NBYTES, "one cache line");

static const uint64_t FREE = 0, HELD = 1, PINNED = 2, RETIRED = UINT64_MAX;

typedef struct {
    PyObject_HEAD
    Py_buffer buffer;
    Words *words;
} Line;

/* Between a store of ours and a look at what the other side stores: at least one of us sees the other. */
static inline void full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static int line_init(Line *self, PyObject *arguments, PyObject *keywords) {
    PyObject *source;
    static char *names[] = {"buffer", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O", names, &source)) return -1;
    if (self->words != NULL) {
        PyErr_SetString(PyExc_ValueError, "a line is made once");
        return -1;
    }
    if (hold_buffer(source, &self->buffer, LINE_OFFSET + LINE_NBYTES) < 0) return -1;
    self->words = (Words *)((char *)self->buffer.buf + LINE_OFFSET);
    return 0;
}

static void line_dealloc(Line *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (self->words != NULL) PyBuffer_Release(&self->buffer);
    type->tp_free((PyObject *)self);
}

static int is_made(Line *self) {
    if (self->words != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "the line has no buffer");
    return 0;
}

/* Let nobody enter any more, and say so by seq; the lease as it stands, or PINNED if a guest came. */
static uint64_t shut(Words *words, uint64_t seq) {
    __atomic_store_n(&words->seq, seq, __ATOMIC_RELAXED);
    full_fence();
    if (__atomic_load_n(&words->guest, __ATOMIC_RELAXED) != 0) return PINNED;
    return load_acquire(&words->lease); /* its views' loads are before our stores */
}

static void stamp(Words *words, uint64_t seq) {
    store_release(&words->seq_copy, seq);
    store_release(&words->seq, seq);
}

PyDoc_STRVAR(claim_doc, "claim()\n--\n\nOwner: let nobody enter any more; the lease as it stands, or 2 if a guest came.");

static PyObject *line_claim(Line *self, PyObject *unused) {
    (void)unused;
    return is_made(self) ? PyLong_FromUnsignedLongLong(shut(self->words, 0)) : NULL;
}

PyDoc_STRVAR(refill_doc,
             "refill(seq, buffer, offset, source)\n--\n\nOwner: claim the segment, copy and stamp, in one; False if somebody holds "
             "it, and then nothing is copied.\n\nRaises:\n    BufferError, ValueError: as copy().");

static PyObject *line_refill(Line *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_made(self)) return NULL;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "refill takes a number, a buffer, an offset and a source");
        return NULL;
    }
    uint64_t seq = PyLong_AsUnsignedLongLong(arguments[0]);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    Py_ssize_t offset = PyLong_AsSsize_t(arguments[2]);
    if (offset == -1 && PyErr_Occurred()) return NULL;
    if (shut(self->words, 0) != FREE) Py_RETURN_FALSE;
    if (copy_bytes(arguments[1], offset, arguments[3]) < 0) return NULL;
    stamp(self->words, seq);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(stamp_doc, "stamp(seq)\n--\n\nOwner: publish what is in the segment under a number.");

static PyObject *line_stamp(Line *self, PyObject *argument) {
    if (!is_made(self)) return NULL;
    uint64_t seq = PyLong_AsUnsignedLongLong(argument);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    stamp(self->words, seq);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(retire_doc, "retire()\n--\n\nOwner: give the segment up; the lease as it stands, or 2 if a guest came.");

static PyObject *line_retire(Line *self, PyObject *unused) {
    (void)unused;
    if (!is_made(self)) return NULL;
    __atomic_store_n(&self->words->seq_copy, RETIRED, __ATOMIC_RELAXED);
    return PyLong_FromUnsignedLongLong(shut(self->words, RETIRED));
}

PyDoc_STRVAR(enter_doc, "enter(seq)\n--\n\nReader: hold the lease; which layout it is, or 0 if it is another tensor by now.");

static PyObject *line_enter(Line *self, PyObject *argument) {
    if (!is_made(self)) return NULL;
    uint64_t wanted = PyLong_AsUnsignedLongLong(argument);
    if (wanted == UINT64_MAX && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) return NULL;
        PyErr_Clear(); /* a number that no segment can have */
        wanted = 0;
    }
    Words *words = self->words;
    __atomic_store_n(&words->lease, HELD, __ATOMIC_RELAXED);
    full_fence(); /* an owner who has not seen it yet has cleared seq already */
    if (wanted == 0 || wanted == RETIRED || load_acquire(&words->seq) != wanted ||
        load_acquire(&words->seq_copy) != wanted)
        return PyLong_FromLong(0);
    return PyLong_FromUnsignedLongLong(load_acquire(&words->layout));
}

PyDoc_STRVAR(leave_doc, "leave()\n--\n\nReader: give the lease back; no view of ours is left.");

static PyObject *line_leave(Line *self, PyObject *unused) {
    (void)unused;
    if (!is_made(self)) return NULL;
    store_release(&self->words->lease, FREE); /* after the loads through the views */
    Py_RETURN_NONE;
}

static PyMethodDef line_methods[] = {
    {"claim", (PyCFunction)line_claim, METH_NOARGS, claim_doc},
    {"refill", (PyCFunction)(void (*)(void))line_refill, METH_FASTCALL, refill_doc},
    {"stamp", (PyCFunction)line_stamp, METH_O, stamp_doc},
    {"retire", (PyCFunction)line_retire, METH_NOARGS, retire_doc},
    {"enter", (PyCFunction)line_enter, METH_O, enter_doc},
    {"leave", (PyCFunction)line_leave, METH_NOARGS, leave_doc},
    {NULL, NULL, 0, NULL},
};

PyTypeObject LineType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Line",
    .tp_doc = "Line(buffer)\n--\n\nThe live line of the segment that a writable buffer begins with.",
    .tp_basicsize = sizeof(Line),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)line_init,
    .tp_dealloc = (destructor)line_dealloc,
    .tp_methods = line_methods,
};
