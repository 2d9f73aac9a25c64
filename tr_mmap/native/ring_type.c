/* The type Ring of Python. */
#include "ring_fields.h"

#include "mirror.h"

static int ring_init(Ring *self, PyObject *arguments, PyObject *keywords) {
    PyObject *source;
    static char *names[] = {"buffer", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O", names, &source)) return -1;
    Py_buffer buffer;
    if (get_word_buffer(source, &buffer, WIRE_RING_NBYTES) < 0) return -1;
    if (self->slots != NULL) { /* looked for now, because the source's code could call __init__ too */
        PyBuffer_Release(&buffer);
        PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
        return -1;
    }
    self->buffer = buffer;
    self->slots = (char *)self->buffer.buf + WIRE_RING_WORDS_NBYTES;
    self->latest = self->slots;
    for (int slot = 0; slot < WIRE_RING_SLOTS; slot++) self->seen[slot] = blank();
    self->generation = fork_generation;
    self->bell = -1;
    return 0;
}

/* A mirror of a ring keeps the ring, and the ring keeps the mirrors that it is to show. */
static int ring_traverse(Ring *self, visitproc visit, void *arg) {
    VISIT_TYPE_AND_MODULE(self);
    Py_VISIT(self->mirrors);
    return 0;
}

static int ring_clear(Ring *self) {
    Py_CLEAR(self->mirrors);
    return 0;
}

static void ring_dealloc(Ring *self) {
    PyObject_GC_UnTrack(self);
    if (self->slots != NULL) PyBuffer_Release(&self->buffer);
    Py_CLEAR(self->last_line);
    Py_CLEAR(self->rejected);
    ring_clear(self);
    stateful_free((PyObject *)self);
}

int ring_is_initialised(PyObject *ring) {
    if (((Ring *)ring)->slots != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ has not run: the ring has no buffer");
    return 0;
}

static int is_initialised(Ring *self) { return ring_is_initialised((PyObject *)self); }

PyDoc_STRVAR(store_doc,
             "store(seq, text)\n--\n\nAppend a message: a JSON object, whose first member is its number.\n\n"
             "Returns:\n    False, and nothing was stored, if is_ordered and the number is below the last one's, or if this is a\n"
             "    forked child of the process that made the ring.\n\n"
             "Raises:\n    ValueError: the number has more than 8 digits, or the text is longer than a slot.");

static PyObject *py_store(Ring *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_initialised(self)) return NULL;
    if (count != 2 || !PyBytes_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "store takes a number and bytes");
        return NULL;
    }
    long seq = PyLong_AsLong(arguments[0]);
    if (seq == -1 && PyErr_Occurred()) return NULL;
    const char *text = PyBytes_AS_STRING(arguments[1]);
    Py_ssize_t nbytes = PyBytes_GET_SIZE(arguments[1]);
    const char *rest = memchr(text, ',', (size_t)nbytes); /* the members after the number */
    int is_stored = rest == NULL ? ring_store((PyObject *)self, seq, "}", 1)
                                 : ring_store((PyObject *)self, seq, rest, nbytes - (rest - text));
    if (is_stored != 0) return PyBool_FromLong(is_stored > 0);
    return PyErr_Format(PyExc_ValueError,
                        "the number has more than %d digits, or the message is longer than a slot",
                        WIRE_NUMBER_DIGITS);
}

PyDoc_STRVAR(has_message_doc, "has_message()\n--\n\nWhether a message waits to be taken.");

static PyObject *py_has_message(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    return PyBool_FromLong(number_at(self, self->taken) != 0);
}

PyDoc_STRVAR(set_bell_doc, "set_bell(fd)\n--\n\nName the descriptor by which ring_bell() wakes the peer; -1 for none.");

static PyObject *py_set_bell(Ring *self, PyObject *argument) {
    long fd = PyLong_AsLong(argument);
    if (fd == -1 && PyErr_Occurred()) return NULL;
    struct stat file;
    int is_open = fd >= 0 && fd <= INT_MAX && fstat((int)fd, &file) == 0;
    self->bell = is_open ? (int)fd : -1;
    if (is_open) {
        self->bell_device = file.st_dev;
        self->bell_inode = file.st_ino;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(ring_bell_doc,
             "ring_bell()\n--\n\nWake the peer if it sleeps on the bell. To be called after a message was stored.");

static PyObject *py_ring_bell(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    ring_bell((PyObject *)self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(arm_doc,
             "arm()\n--\n\nLet the peer ring the bell after its next message.\n\n"
             "Returns:\n    Whether a message is there already, for which it may not ring.");

static PyObject *py_arm(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    return PyBool_FromLong(ring_arm(self));
}

static int parse_position(PyObject *argument, uint64_t *position) {
    *position = PyLong_AsUnsignedLongLong(argument);
    return *position == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

PyDoc_STRVAR(cancel_doc,
             "cancel(position)\n--\n\nSay that nobody wants the answer to the message of a position.\n\n"
             "Returns:\n    Whether the peer had not begun with it, and now will not.");

static PyObject *py_cancel(Ring *self, PyObject *argument) {
    uint64_t position;
    if (!is_initialised(self) || parse_position(argument, &position) < 0) return NULL;
    return PyBool_FromLong(ring_cancel(self, position, 0));
}

PyDoc_STRVAR(withdraw_doc,
             "withdraw(position)\n--\n\nTake the message of a position back, unless it was cancelled. The peer's handler never\n"
             "learns of it.\n\n"
             "Returns:\n    Whether the peer had not begun with it, and now will not.");

static PyObject *py_withdraw(Ring *self, PyObject *argument) {
    uint64_t position;
    if (!is_initialised(self) || parse_position(argument, &position) < 0) return NULL;
    return PyBool_FromLong(ring_cancel(self, position, 1));
}

PyDoc_STRVAR(is_cancelled_doc,
             "is_cancelled(position)\n--\n\nWhether the peer has cancelled the message of a position, which was taken.");

static PyObject *py_is_cancelled(Ring *self, PyObject *argument) {
    uint64_t position;
    if (!is_initialised(self) || parse_position(argument, &position) < 0) return NULL;
    return PyBool_FromLong(ring_is_cancelled((PyObject *)self, position));
}

PyDoc_STRVAR(is_withdrawn_doc,
             "is_withdrawn(position)\n--\n\nWhether the peer has taken the message of a position back, which was taken.");

static PyObject *py_is_withdrawn(Ring *self, PyObject *argument) {
    uint64_t position;
    if (!is_initialised(self) || parse_position(argument, &position) < 0) return NULL;
    return PyBool_FromLong(ring_is_withdrawn((PyObject *)self, position));
}

PyDoc_STRVAR(peek_doc,
             "peek()\n--\n\nThe next message's line without its newline; None if there is none, or while it is being\n"
             "stored. The same until advance().\n\nRaises:\n    ValueError: it has no end.");

static PyObject *py_peek(Ring *self, PyObject *unused) {
    (void)unused;
    RingLine next;
    if (!is_initialised(self)) return NULL;
    int is_there = ring_next((PyObject *)self, &next);
    if (is_there <= 0) return is_there < 0 ? NULL : Py_NewRef(Py_None);
    if (next.is_terminated) return next.line;
    Py_DECREF(next.line);
    PyErr_SetString(PyExc_ValueError, "the message has no end");
    return NULL;
}

PyDoc_STRVAR(all_done_doc, "all_done()\n--\n\nTell the peer that this side is done with all messages that it has taken.");

static PyObject *py_all_done(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    store_release(done_word(self), self->taken);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(advance_doc,
             "advance(position, is_done)\n--\n\nTake the message at a position, unless it was taken meanwhile.\n\n"
             "Args:\n    position: `taken` at the time of peek().\n"
             "    is_done: whether this side is done with it, and with all before it.\n\n"
             "Returns:\n    Whether this call has taken it.");

static PyObject *py_advance(Ring *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_initialised(self)) return NULL;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "advance takes a position and whether it is done");
        return NULL;
    }
    uint64_t position;
    if (parse_position(arguments[0], &position) < 0) return NULL;
    int is_done = PyObject_IsTrue(arguments[1]);
    if (is_done < 0) return NULL;
    int is_taken = ring_take(self, position, load_acquire(number_in(slot_of(self, position))));
    if (is_done) store_release(done_word(self), self->taken);
    return PyBool_FromLong(is_taken);
}

PyDoc_STRVAR(has_stored_doc, "has_stored(seq)\n--\n\nWhether one of the last messages that this side has stored has a number.");

static PyObject *py_has_stored(Ring *self, PyObject *number) {
    if (!is_initialised(self)) return NULL;
    long seq = PyLong_AsLong(number);
    if (seq == -1 && PyErr_Occurred()) return NULL;
    if (seq < 1 || seq > WIRE_MAX_MESSAGE_SEQ) Py_RETURN_FALSE;
    uint64_t word = ring_number_word(seq);
    for (uint64_t slot = 0; slot < WIRE_RING_SLOTS; slot++)
        if (load_acquire(number_in(slot_of(self, slot))) == word) Py_RETURN_TRUE;
    Py_RETURN_FALSE;
}

PyDoc_STRVAR(set_spin_doc,
             "set_spin(us)\n--\n\nLet sleep() poll for a message for so long, and for a millisecond at most, before\n"
             "it sleeps; but not after a message that took longer.");

static PyObject *py_set_spin(Ring *self, PyObject *argument) {
    double us;
    if (parse_time(argument, &us) < 0) return NULL;
    self->spin_us = us > WIRE_MAX_SPIN_US ? WIRE_MAX_SPIN_US : us > 0 ? us : 0;
    self->should_spin = 1;
    Py_RETURN_NONE;
}

static int should_stop_by_call(void *function) {
    PyObject *returned = PyObject_CallNoArgs(function);
    int should_stop = returned == NULL ? -1 : PyObject_IsTrue(returned);
    Py_XDECREF(returned);
    return should_stop;
}

PyDoc_STRVAR(sleep_doc,
             "sleep(semaphore, timeout_s, slice_s, stop)\n--\n\n"
             "Sleep until a message is there, the time is over, or stop() says so.\n\n"
             "Args:\n"
             "    semaphore: posted after each message.\n"
             "    timeout_s: how long to sleep.\n"
             "    slice_s: the longest single sleep, for a post may be lost.\n"
             "    stop: called before each sleep; True ends it all.\n\n"
             "Returns:\n    Whether a message is there.\n\n"
             "Raises:\n    ValueError: a time is NaN, or slice_s is no positive number.");

static PyObject *py_sleep(Ring *self, PyObject *const *arguments, Py_ssize_t count) {
    double timeout_s, slice_s;
    if (!is_initialised(self)) return NULL;
    if (count != 4 || !PyObject_TypeCheck(arguments[0], self->state->semaphore)) {
        PyErr_SetString(PyExc_TypeError, "sleep takes a Semaphore, two times and a function");
        return NULL;
    }
    if (parse_time(arguments[1], &timeout_s) < 0 || parse_slice(arguments[2], &slice_s) < 0) return NULL;
    if (ring_sleep((PyObject *)self, arguments[0], timeout_s, slice_s, should_stop_by_call, arguments[3]) < 0) return NULL;
    return PyBool_FromLong(ring_is_next_there(self));
}

PyDoc_STRVAR(reject_doc,
             "reject()\n--\n\n"
             "Ignore the line that peek() has given; any other can be taken, even one of the same number as that line.");

static PyObject *py_reject(Ring *self, PyObject *unused) {
    (void)unused;
    Py_XSETREF(self->rejected, Py_XNewRef(self->last_line));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(newest_doc,
             "newest()\n--\n\nThe line of the newest message, which may have been taken or not; whole or not.");

static PyObject *py_newest(Ring *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    const char *slot = ring_newest_slot(self);
    const char *end = memchr(slot, '\n', WIRE_RING_SLOT_NBYTES);
    return PyBytes_FromStringAndSize(slot, end == NULL ? WIRE_RING_SLOT_NBYTES : end - slot);
}

PyDoc_STRVAR(newest_seq_doc,
             "newest_seq()\n--\n\nThe number of that message; 0 if there is none, or if it is no number.");

static PyObject *py_newest_seq(Ring *self, PyObject *unused) {
    (void)unused;
    return is_initialised(self) ? PyLong_FromLong(ring_number_of(load_acquire(number_in(ring_newest_slot(self))))) : NULL;
}

PyDoc_STRVAR(next_seq_doc, "next_seq()\n--\n\nThe number of the next message; 0 if there is none, or if it is no number.");

static PyObject *py_next_seq(Ring *self, PyObject *unused) {
    (void)unused;
    return is_initialised(self) ? PyLong_FromLong(ring_number_of(number_at(self, self->taken))) : NULL;
}

PyDoc_STRVAR(set_mirrors_doc,
             "set_mirrors(mirrors)\n--\n\nLet sleep() keep a tuple of mirrors up to date while no message comes.");

static PyObject *py_set_mirrors(Ring *self, PyObject *mirrors) {
    int is_right = PyTuple_Check(mirrors);
    for (Py_ssize_t index = 0; is_right && index < PyTuple_GET_SIZE(mirrors); index++)
        is_right = PyObject_TypeCheck(PyTuple_GET_ITEM(mirrors, index), self->state->mirror);
    if (!is_right) {
        PyErr_SetString(PyExc_TypeError, "set_mirrors takes a tuple of Mirrors");
        return NULL;
    }
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(mirrors); index++)
        if (!mirror_is_initialised(PyTuple_GET_ITEM(mirrors, index))) return NULL;
    Py_XSETREF(self->mirrors, Py_NewRef(mirrors));
    Py_RETURN_NONE;
}

static PyObject *get_waiters(Ring *self, void *unused) {
    (void)unused;
    return PyLong_FromLong(self->waiters);
}

static PyObject *get_stored_seq(Ring *self, void *unused) {
    (void)unused;
    return PyLong_FromLong(self->stored_seq);
}

static PyObject *get_done_by_peer(Ring *self, void *unused) {
    (void)unused;
    return is_initialised(self) ? PyLong_FromUnsignedLongLong(load_acquire(done_word(self))) : NULL;
}

static PyGetSetDef ring_properties[] = {
    {"stored", (getter)get_unsigned, NULL, "How many messages this side has stored.", (void *)offsetof(Ring, stored)},
    {"taken", (getter)get_unsigned, NULL, "How many messages this side has taken.", (void *)offsetof(Ring, taken)},
    {"stored_seq", (getter)get_stored_seq, NULL, "The number of the last message that was stored; 0 before.", NULL},
    {"done_by_peer", (getter)get_done_by_peer, NULL, "How many messages the peer is done with.", NULL},
    {"waiters", (getter)get_waiters, NULL, "How many threads are in sleep().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef ring_methods[] = {
    {"store", (PyCFunction)(void (*)(void))py_store, METH_FASTCALL, store_doc},
    {"has_message", (PyCFunction)py_has_message, METH_NOARGS, has_message_doc},
    {"set_spin", (PyCFunction)py_set_spin, METH_O, set_spin_doc},
    {"newest", (PyCFunction)py_newest, METH_NOARGS, newest_doc},
    {"newest_seq", (PyCFunction)py_newest_seq, METH_NOARGS, newest_seq_doc},
    {"next_seq", (PyCFunction)py_next_seq, METH_NOARGS, next_seq_doc},
    {"peek", (PyCFunction)py_peek, METH_NOARGS, peek_doc},
    {"advance", (PyCFunction)(void (*)(void))py_advance, METH_FASTCALL, advance_doc},
    {"all_done", (PyCFunction)py_all_done, METH_NOARGS, all_done_doc},
    {"set_bell", (PyCFunction)py_set_bell, METH_O, set_bell_doc},
    {"ring_bell", (PyCFunction)py_ring_bell, METH_NOARGS, ring_bell_doc},
    {"arm", (PyCFunction)py_arm, METH_NOARGS, arm_doc},
    {"cancel", (PyCFunction)py_cancel, METH_O, cancel_doc},
    {"withdraw", (PyCFunction)py_withdraw, METH_O, withdraw_doc},
    {"is_withdrawn", (PyCFunction)py_is_withdrawn, METH_O, is_withdrawn_doc},
    {"is_cancelled", (PyCFunction)py_is_cancelled, METH_O, is_cancelled_doc},
    {"has_stored", (PyCFunction)py_has_stored, METH_O, has_stored_doc},
    {"sleep", (PyCFunction)(void (*)(void))py_sleep, METH_FASTCALL, sleep_doc},
    {"reject", (PyCFunction)py_reject, METH_NOARGS, reject_doc},
    {"set_mirrors", (PyCFunction)py_set_mirrors, METH_O, set_mirrors_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef ring_members[] = {
    {"is_ordered", T_BOOL, offsetof(Ring, is_ordered), 0, "whether no number may be below that of the last store"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc, "Ring(buffer)\n--\n\nA ring of messages that is mapped as a writable buffer."},
    {Py_tp_new, stateful_new},
    {Py_tp_init, ring_init},
    {Py_tp_traverse, ring_traverse},
    {Py_tp_clear, ring_clear},
    {Py_tp_dealloc, ring_dealloc},
    {Py_tp_methods, ring_methods},
    {Py_tp_members, ring_members},
    {Py_tp_getset, ring_properties},
    {0, NULL},
};

PyType_Spec ring_spec = {
    .name = "tr_mmap.native.Ring",
    .basicsize = sizeof(Ring),
    .flags = TYPE_FLAGS | Py_TPFLAGS_HAVE_GC,
    .slots = ring_slots,
};
