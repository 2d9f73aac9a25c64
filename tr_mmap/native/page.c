/* A mapped message file: one side stores, the other looks. The bytes are those of channel/mapped.py. */
#include "page.h"

#include <string.h>
#include <time.h>

enum { REST = 16, MOST_SEQ = 99999999, MOST_SPIN_US = 1000 };

typedef struct {
    PyObject_HEAD
    Py_buffer buffer;
    uint64_t *number; /* 8 ASCII characters, stored last */
    Py_ssize_t previous_nbytes;
    uint64_t seen;
    double spin_us;  /* most that wait() looks for a message before it sleeps */
    double since_us; /* when the wait for the next message began; 0 while there is none */
    int is_worth_it; /* the last message came within spin_us, so the next one is looked for */
    PyObject *taken;   /* bytes: the last line that was taken */
    int is_endless;    /* it had no end */
    PyObject *refused; /* bytes or NULL: a line that lies there and is not the peer's */
} Page;

static uint64_t blank(void) {
    uint64_t word;
    memcpy(&word, "       0", sizeof word);
    return word;
}

static uint64_t number_of(long seq) {
    char digits[8];
    memset(digits, ' ', sizeof digits);
    for (int place = 7; seq != 0; place--, seq /= 10) digits[place] = (char)('0' + seq % 10);
    uint64_t word;
    memcpy(&word, digits, sizeof word);
    return word;
}

static int page_init(Page *self, PyObject *arguments, PyObject *keywords) {
    PyObject *source;
    static char *names[] = {"buffer", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O", names, &source)) return -1;
    if (self->number != NULL) {
        PyErr_SetString(PyExc_ValueError, "a page is made once");
        return -1;
    }
    if (hold_buffer(source, &self->buffer, REST + 1) < 0) return -1;
    self->number = (uint64_t *)((char *)self->buffer.buf + 8);
    self->seen = blank();
    return 0;
}

static void page_dealloc(Page *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (self->number != NULL) PyBuffer_Release(&self->buffer);
    Py_CLEAR(self->taken);
    Py_CLEAR(self->refused);
    type->tp_free((PyObject *)self);
}

static int is_made(Page *self) {
    if (self->number != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "the page has no buffer");
    return 0;
}

PyDoc_STRVAR(store_doc, "store(seq, text)\n--\n\nReplace the message by a JSON object, whose first member is its number.\n\n"
                        "Raises:\n    ValueError: the number has more than 8 digits, or the text is longer than the page.");

int page_put(PyObject *page, long seq, const char *others, Py_ssize_t nbytes) {
    Page *self = (Page *)page;
    nbytes += 1; /* the newline */
    if (seq < 1 || seq > MOST_SEQ || nbytes > self->buffer.len - REST) return 0;
    uint64_t word = number_of(seq);
    char *rest = (char *)self->buffer.buf + REST;
    __atomic_store_n(self->number, blank(), __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE); /* the blank is there before any of the rest */
    memcpy(rest, others, (size_t)nbytes - 1);
    rest[nbytes - 1] = '\n';
    if (nbytes < self->previous_nbytes) memset(rest + nbytes, ' ', (size_t)(self->previous_nbytes - nbytes));
    self->previous_nbytes = nbytes;
    store_release(self->number, word);
    return 1;
}

static PyObject *page_store(Page *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_made(self)) return NULL;
    if (count != 2 || !PyBytes_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "store takes a number and bytes");
        return NULL;
    }
    long seq = PyLong_AsLong(arguments[0]);
    if (seq == -1 && PyErr_Occurred()) return NULL;
    const char *text = PyBytes_AS_STRING(arguments[1]);
    Py_ssize_t text_nbytes = PyBytes_GET_SIZE(arguments[1]);
    const char *others = memchr(text, ',', (size_t)text_nbytes); /* the members after the number */
    if (others == NULL ? page_put((PyObject *)self, seq, "}", 1)
                       : page_put((PyObject *)self, seq, others, text_nbytes - (others - text))) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "the number has more than 8 digits, or the message is longer than the page");
    return NULL;
}

PyDoc_STRVAR(has_message_doc, "has_message()\n--\n\nWhether a message waits to be taken.");

static PyObject *page_has_message(Page *self, PyObject *unused) {
    (void)unused;
    if (!is_made(self)) return NULL;
    uint64_t word = load_acquire(self->number);
    return PyBool_FromLong(word != self->seen && word != blank());
}

PyDoc_STRVAR(take_doc,
             "take()\n--\n\nThe next message's line without its newline; None if there is none, or it is being replaced.\n\n"
             "Raises:\n    ValueError: it has no end; it counts as taken.");

static PyObject *page_take(Page *self, PyObject *unused) {
    (void)unused;
    if (!is_made(self)) return NULL;
    self->is_endless = 0;
    uint64_t word = load_acquire(self->number);
    if (word == self->seen || word == blank()) Py_RETURN_NONE;
    const char *text = self->buffer.buf;
    const char *end = memchr(text, '\n', (size_t)self->buffer.len);
    PyObject *line = PyBytes_FromStringAndSize(text, end == NULL ? self->buffer.len : end - text);
    if (line == NULL) return NULL;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    int is_same = __atomic_load_n(self->number, __ATOMIC_RELAXED) == word; /* else being replaced; a ring follows */
    if (is_same && self->refused != NULL) {
        int is_refused = PyObject_RichCompareBool(line, self->refused, Py_EQ);
        if (is_refused < 0) {
            Py_DECREF(line);
            return NULL;
        }
        is_same = !is_refused;
    }
    if (!is_same) {
        Py_DECREF(line);
        Py_RETURN_NONE;
    }
    self->seen = word;
    Py_XSETREF(self->taken, Py_NewRef(line));
    if (end == NULL) {
        Py_DECREF(line);
        self->is_endless = 1;
        PyErr_SetString(PyExc_ValueError, "the message has no end");
        return NULL;
    }
    return line;
}

PyDoc_STRVAR(set_spin_doc, "set_spin(us)\n--\n\nLet wait() look for a message for so long, at most (and at most a "
             "millisecond), before it sleeps; but not after one that took longer.");

static PyObject *page_set_spin(Page *self, PyObject *argument) {
    double us = PyFloat_AsDouble(argument);
    if (us == -1.0 && PyErr_Occurred()) return NULL;
    self->spin_us = us > MOST_SPIN_US ? MOST_SPIN_US : us > 0 ? us : 0;
    self->is_worth_it = 1;
    Py_RETURN_NONE;
}

double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Look for a message without sleeping. So short that signals, deadlines and the peer's death can wait for its end. */
static void spin(Page *self, double us) {
    double until_us = now_us() + us;
    uint64_t seen = self->seen;
    int has_come = 0;
    Py_BEGIN_ALLOW_THREADS
    do {
        for (int look = 0; look < 16 && !has_come; look++) {
            pause_briefly();
            uint64_t word = load_acquire(self->number);
            has_come = word != seen && word != blank();
        }
    } while (!has_come && now_us() < until_us);
    Py_END_ALLOW_THREADS
}

/* The line, unless a signal handler raises: then the line is to be taken again, not lost with what is interrupted. */
static PyObject *give(Page *self, PyObject *line) {
    if (line == NULL || line == Py_None || PyErr_CheckSignals() == 0) return line;
    Py_DECREF(line);
    self->seen = blank();
    return NULL;
}

/* Take the next message, and learn from how long it was waited for. */
static PyObject *take_and_learn(Page *self) {
    PyObject *line = page_take(self, NULL);
    if (self->spin_us > 0) {
        self->is_worth_it = now_us() - self->since_us <= self->spin_us;
        if (line != Py_None) self->since_us = 0;
    }
    return line;
}

PyDoc_STRVAR(wait_doc,
             "wait(bell, timeout_s, slice_s, stop)\n--\n\nTake the next message's line; sleep until the bell is rung for as long as there is none.\n\n"
             "Args:\n    slice_s: most that it sleeps at a time, for a ring may be lost.\n    stop: asked before each sleep; True ends the wait.\n\nReturns:\n    None when the time is over, or stop() says so.\n\n"
             "Raises:\n    ValueError: as take().");

PyObject *page_await(PyObject *page, PyObject *bell, double timeout_s, double slice_s, Ends ends, void *context) {
    Page *self = (Page *)page;
    PyObject *line = page_take(self, NULL);
    if (line != Py_None) {
        if (line != NULL) self->since_us = 0;
        return give(self, line);
    }
    Py_DECREF(line);
    double began_us = now_us(), left_s = timeout_s;
    if (self->since_us == 0) self->since_us = began_us;
    while (left_s > 0) {
        int is_over = ends(context);
        if (is_over < 0) return NULL;
        if (is_over) break;
        if (self->spin_us > 0 && self->is_worth_it) {
            spin(self, left_s * 1e6 < self->spin_us ? left_s * 1e6 : self->spin_us);
            line = take_and_learn(self);
            if (line != Py_None) return give(self, line);
            Py_DECREF(line);
        }
        if (wait_for_bell(bell, left_s < slice_s ? left_s : slice_s) < 0) return NULL;
        line = take_and_learn(self);
        if (line != Py_None) return give(self, line);
        Py_DECREF(line);
        left_s = timeout_s - (now_us() - began_us) / 1e6;
    }
    return give(self, page_take(self, NULL)); /* it may have come just before the reason to stop */
}

static int ends_by_call(void *context) {
    PyObject *answer = PyObject_CallNoArgs(context);
    int is_over = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return is_over;
}

static PyObject *page_wait(Page *self, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "wait takes a bell, two times and a function");
        return NULL;
    }
    double timeout_s = PyFloat_AsDouble(arguments[1]), slice_s = PyFloat_AsDouble(arguments[2]);
    if ((timeout_s == -1.0 || slice_s == -1.0) && PyErr_Occurred()) return NULL;
    return page_await((PyObject *)self, arguments[0], timeout_s, slice_s, ends_by_call, arguments[3]);
}

PyDoc_STRVAR(put_back_doc, "put_back()\n--\n\nLet the line just taken be taken again.");

int page_is_endless(PyObject *page) { return ((Page *)page)->is_endless; }

void page_restore(PyObject *page) { ((Page *)page)->seen = blank(); }

static PyObject *page_put_back(PyObject *self, PyObject *unused) {
    (void)unused;
    page_restore(self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(refuse_doc,
             "refuse()\n--\n\nLook out for another line, even one of the same number as the line just taken.");

static PyObject *page_refuse(Page *self, PyObject *unused) {
    (void)unused;
    Py_XSETREF(self->refused, Py_XNewRef(self->taken));
    self->seen = blank();
    Py_RETURN_NONE;
}

static PyMethodDef page_methods[] = {
    {"store", (PyCFunction)(void (*)(void))page_store, METH_FASTCALL, store_doc},
    {"has_message", (PyCFunction)page_has_message, METH_NOARGS, has_message_doc},
    {"take", (PyCFunction)page_take, METH_NOARGS, take_doc},
    {"set_spin", (PyCFunction)page_set_spin, METH_O, set_spin_doc},
    {"wait", (PyCFunction)(void (*)(void))page_wait, METH_FASTCALL, wait_doc},
    {"put_back", page_put_back, METH_NOARGS, put_back_doc},
    {"refuse", (PyCFunction)page_refuse, METH_NOARGS, refuse_doc},
    {NULL, NULL, 0, NULL},
};

PyTypeObject PageType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Page",
    .tp_doc = "Page(buffer)\n--\n\nA message file that is mapped as a writable buffer.",
    .tp_basicsize = sizeof(Page),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)page_init,
    .tp_dealloc = (destructor)page_dealloc,
    .tp_methods = page_methods,
};

const char has_as_many_colons_doc[] =
    "has_as_many_colons(line, values)\n--\n\nWhether a line of bytes has as many colons as a tuple has true values.";

PyObject *has_as_many_colons(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyBytes_Check(arguments[0]) || !PyTuple_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "has_as_many_colons takes bytes and a tuple");
        return NULL;
    }
    Py_ssize_t surplus = 0;
    const char *text = PyBytes_AS_STRING(arguments[0]);
    for (Py_ssize_t index = 0; index < PyBytes_GET_SIZE(arguments[0]); index++) surplus += text[index] == ':';
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(arguments[1]); index++) {
        int is_true = PyObject_IsTrue(PyTuple_GET_ITEM(arguments[1], index));
        if (is_true < 0) return NULL;
        surplus -= is_true;
    }
    return PyBool_FromLong(surplus == 0);
}
