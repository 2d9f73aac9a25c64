/* The type LeaseWords: the live line of a segment's header, for its owner and for its reader. Touches no payload. */
#include "lease_words.h"

int lease_words_init(LeaseWords *self, PyObject *source, PyObject *members, Py_ssize_t line) {
    Py_buffer buffer, members_buffer = {.obj = NULL};
    int has_members = members != NULL && members != Py_None;
    Py_ssize_t nbytes = has_members || line != NO_LINE ? WIRE_HEAD_NBYTES : WIRE_LIVE_OFFSET + WIRE_LIVE_NBYTES;
    if (get_word_buffer(source, &buffer, nbytes) < 0) return -1;
    if (has_members && get_word_buffer(members, &members_buffer, WIRE_MAX_READERS) < 0) {
        PyBuffer_Release(&buffer);
        return -1;
    }
    if (self->live != NULL) { /* looked for now, because the source's code could call __init__ too */
        PyBuffer_Release(&buffer);
        if (has_members) PyBuffer_Release(&members_buffer);
        PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
        return -1;
    }
    self->buffer = buffer;
    self->members_buffer = members_buffer;
    self->live = (LiveLine *)((char *)self->buffer.buf + WIRE_LIVE_OFFSET);
    self->members = has_members ? members_buffer.buf : NULL;
    self->lease = line == NO_LINE
                      ? &self->live->lease
                      : (uint64_t *)((char *)buffer.buf + WIRE_LINES_OFFSET + (size_t)line * WIRE_LINE_NBYTES);
    return 0;
}

void lease_words_clear(LeaseWords *self) {
    int is_initialised = self->live != NULL, has_members = self->members != NULL;
    self->live = NULL;
    self->members = NULL;
    self->lease = NULL;
    if (is_initialised) PyBuffer_Release(&self->buffer);
    if (has_members) PyBuffer_Release(&self->members_buffer);
}

Py_ssize_t parse_line(PyObject *argument) {
    if (argument == NULL || argument == Py_None) return NO_LINE;
    Py_ssize_t line = PyLong_AsSsize_t(argument);
    if (line >= 0 && line < WIRE_MAX_READERS) return line;
    if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "there is no lease line %zd", line);
    return NO_LINE - 1;
}

const char set_member_doc[] =
    "set_member(page, line, is_member)\n--\n\nSet or clear the byte of a lease line on the page of readers, in order\n"
    "with all stores and loads before it.";

PyObject *py_set_member(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "set_member takes a page, a line, and whether it has a reader");
        return NULL;
    }
    Py_ssize_t line = parse_line(arguments[1]);
    if (line < NO_LINE) return NULL; /* before any code of Python's runs: it could clear the exception */
    if (line == NO_LINE) {
        PyErr_SetString(PyExc_TypeError, "None is no lease line");
        return NULL;
    }
    int is_member = PyObject_IsTrue(arguments[2]);
    Py_buffer page;
    if (is_member < 0) return NULL;
    if (get_word_buffer(arguments[0], &page, WIRE_MAX_READERS) < 0) return NULL;
    __atomic_store_n((unsigned char *)page.buf + line, (unsigned char)is_member, __ATOMIC_SEQ_CST);
    PyBuffer_Release(&page);
    Py_RETURN_NONE;
}

int lease_words_is_initialised(LeaseWords *self) {
    if (self->live != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ has not run: there is no buffer");
    return 0;
}

static int lease_words_py_init(LeaseWords *self, PyObject *arguments, PyObject *keywords) {
    PyObject *source, *members = NULL, *line = NULL;
    static char *names[] = {"buffer", "members", "line", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|OO", names, &source, &members, &line)) return -1;
    Py_ssize_t number = parse_line(line);
    return number < NO_LINE ? -1 : lease_words_init(self, source, members, number);
}

static void lease_words_dealloc(LeaseWords *self) {
    lease_words_clear(self);
    stateful_free((PyObject *)self);
}

PyDoc_STRVAR(claim_doc,
             "claim()\n--\n\nOwner: let no reader acquire a lease any more.\n\nReturns:\n"
             "    The strongest lease, or 2 (PINNED) if a guest came.");

static PyObject *py_claim(LeaseWords *self, PyObject *unused) {
    (void)unused;
    return lease_words_is_initialised(self) ? PyLong_FromUnsignedLongLong(clear_seq(self, 0)) : NULL;
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
             "    The strongest lease, or 2 (PINNED) if a guest came.");

static PyObject *py_retire(LeaseWords *self, PyObject *unused) {
    (void)unused;
    if (!lease_words_is_initialised(self)) return NULL;
    __atomic_store_n(&self->live->seq_copy, WIRE_SEQ_RETIRED, __ATOMIC_RELAXED);
    return PyLong_FromUnsignedLongLong(clear_seq(self, WIRE_SEQ_RETIRED));
}

PyDoc_STRVAR(lease_doc,
             "lease()\n--\n\nOwner: the strongest lease that a reader has now: 0 (FREE), 1 (HELD) or 2 (PINNED).");

static PyObject *py_lease(LeaseWords *self, PyObject *unused) {
    (void)unused;
    return lease_words_is_initialised(self) ? PyLong_FromUnsignedLongLong(strongest_lease(self)) : NULL;
}

PyDoc_STRVAR(acquire_doc,
             "acquire(seq)\n--\n\nReader: hold the lease.\n\nReturns:\n"
             "    The number of the layout, or 0 if another tensor is there by now.");

static PyObject *py_acquire(LeaseWords *self, PyObject *argument) {
    if (!lease_words_is_initialised(self)) return NULL;
    uint64_t seq = parse_seq(argument);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    return PyLong_FromUnsignedLongLong(acquire_lease(self, seq));
}

static PyMethodDef lease_words_methods[] = {
    {"claim", (PyCFunction)py_claim, METH_NOARGS, claim_doc},
    {"stamp", (PyCFunction)py_stamp, METH_O, stamp_doc},
    {"retire", (PyCFunction)py_retire, METH_NOARGS, retire_doc},
    {"lease", (PyCFunction)py_lease, METH_NOARGS, lease_doc},
    {"acquire", (PyCFunction)py_acquire, METH_O, acquire_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot lease_words_slots[] = {
    {Py_tp_doc, "LeaseWords(buffer, members=None, line=None)\n--\n\n"
                "The live line and the lease lines of the segment that a writable buffer begins with.\n\n"
                "Args:\n    buffer: its whole first page, with one of the others.\n"
                "    members: the page that says which lease lines have a reader, for an owner.\n"
                "    line: the number of a reader's line; None for the session's own reader."},
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
