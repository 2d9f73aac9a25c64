/* The type LeaseWords: the live line of a segment's header, for its owner and for its reader. Touches no payload. */
#include "lease_words.h"

int lease_words_init(LeaseWords *self, PyObject *source) {
    Py_buffer buffer;
    if (get_word_buffer(source, &buffer, WIRE_LIVE_OFFSET + WIRE_LIVE_NBYTES) < 0) return -1;
    if (self->live != NULL) { /* looked for now, because the source's code could call __init__ too */
        PyBuffer_Release(&buffer);
        PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
        return -1;
    }
    self->buffer = buffer;
    self->live = (LiveLine *)((char *)self->buffer.buf + WIRE_LIVE_OFFSET);
    return 0;
}

void lease_words_clear(LeaseWords *self) {
    if (self->live != NULL) PyBuffer_Release(&self->buffer);
    self->live = NULL;
}

int lease_words_is_initialised(LeaseWords *self) {
    if (self->live != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ has not run: there is no buffer");
    return 0;
}

static int lease_words_py_init(LeaseWords *self, PyObject *arguments, PyObject *keywords) {
    PyObject *source;
    static char *names[] = {"buffer", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O", names, &source)) return -1;
    return lease_words_init(self, source);
}

static void lease_words_dealloc(LeaseWords *self) {
    lease_words_clear(self);
    stateful_free((PyObject *)self);
}

PyDoc_STRVAR(claim_doc,
             "claim()\n--\n\nOwner: let no reader acquire the lease any more.\n\nReturns:\n"
             "    The lease as it stands, or 2 (PINNED) if a guest came.");

static PyObject *py_claim(LeaseWords *self, PyObject *unused) {
    (void)unused;
    return lease_words_is_initialised(self) ? PyLong_FromUnsignedLongLong(clear_seq(self->live, 0)) : NULL;
}

PyDoc_STRVAR(stamp_doc, "stamp(seq)\n--\n\nOwner: publish what is in the segment under a number.");

static PyObject *py_stamp(LeaseWords *self, PyObject *argument) {
    if (!lease_words_is_initialised(self)) return NULL;
    uint64_t seq = PyLong_AsUnsignedLongLong(argument);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    stamp(self->live, seq);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(retire_doc,
             "retire()\n--\n\nOwner: give the segment up.\n\nReturns:\n"
             "    The lease as it stands, or 2 (PINNED) if a guest came.");

static PyObject *py_retire(LeaseWords *self, PyObject *unused) {
    (void)unused;
    if (!lease_words_is_initialised(self)) return NULL;
    __atomic_store_n(&self->live->seq_copy, WIRE_SEQ_RETIRED, __ATOMIC_RELAXED);
    return PyLong_FromUnsignedLongLong(clear_seq(self->live, WIRE_SEQ_RETIRED));
}

PyDoc_STRVAR(acquire_doc,
             "acquire(seq)\n--\n\nReader: hold the lease.\n\nReturns:\n"
             "    The number of the layout, or 0 if another tensor is there by now.");

static PyObject *py_acquire(LeaseWords *self, PyObject *argument) {
    if (!lease_words_is_initialised(self)) return NULL;
    uint64_t seq = parse_seq(argument);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    return PyLong_FromUnsignedLongLong(acquire_lease(self->live, seq));
}

static PyMethodDef lease_words_methods[] = {
    {"claim", (PyCFunction)py_claim, METH_NOARGS, claim_doc},
    {"stamp", (PyCFunction)py_stamp, METH_O, stamp_doc},
    {"retire", (PyCFunction)py_retire, METH_NOARGS, retire_doc},
    {"acquire", (PyCFunction)py_acquire, METH_O, acquire_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot lease_words_slots[] = {
    {Py_tp_doc, "LeaseWords(buffer)\n--\n\nThe live line of the segment that a writable buffer begins with."},
    {Py_tp_new, stateful_new},
    {Py_tp_init, lease_words_py_init},
    {Py_tp_dealloc, lease_words_dealloc},
    {Py_tp_methods, lease_words_methods},
    {0, NULL},
};

PyType_Spec lease_words_spec = {
    .name = "tr_mmap.native.LeaseWords",
    .basicsize = sizeof(LeaseWords),
    .flags = TYPE_FLAGS | Py_TPFLAGS_BASETYPE,
    .slots = lease_words_slots,
};
