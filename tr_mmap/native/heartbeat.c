/* The type Heartbeat: the word of the status page that says when the worker last worked. */
#include "mirror.h"

#include <string.h>
#include <time.h>

_Static_assert(WIRE_HEARTBEAT_DIGITS == sizeof(uint64_t), "the heartbeat is stored as one word");
_Static_assert(WIRE_HEARTBEAT_OFFSET % sizeof(uint64_t) == 0, "the heartbeat's word is aligned");
_Static_assert(WIRE_HEARTBEAT_OFFSET + WIRE_HEARTBEAT_DIGITS == WIRE_STATUS_NBYTES, "it is the status page's last");

typedef struct {
    PyObject_HEAD
    Py_buffer page;
    HeartbeatWord word; /* its address is NULL until __init__ has run */
} Heartbeat;

/* The clock that a touch reads. It is some milliseconds behind the other, so an age is never below zero. To read it
 * takes a third of the time, which matters because each request touches three times. */
#ifdef CLOCK_MONOTONIC_COARSE
static const clockid_t TOUCH_CLOCK = CLOCK_MONOTONIC_COARSE;
#else
static const clockid_t TOUCH_CLOCK = CLOCK_MONOTONIC;
#endif

/* A monotonic clock: whole milliseconds, and the fraction of the next one. */
static uint32_t now_word_ms(clockid_t clock, double *fraction) {
    struct timespec now;
    clock_gettime(clock, &now);
    *fraction = (double)(now.tv_nsec % 1000000) / 1e6;
    return (uint32_t)((uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000);
}

void heartbeat_touch(HeartbeatWord *self) {
    static const char hex[] = "0123456789abcdef";
    double fraction;
    uint32_t ms = now_word_ms(TOUCH_CLOCK, &fraction);
    if (ms == self->last_ms && __atomic_load_n(self->address, __ATOMIC_RELAXED) == self->last_value) return;
    self->last_ms = ms;
    char digits[WIRE_HEARTBEAT_DIGITS];
    for (int place = WIRE_HEARTBEAT_DIGITS - 1; place >= 0; place--, ms >>= 4) digits[place] = hex[ms & 15];
    uint64_t value;
    memcpy(&value, digits, sizeof value);
    self->last_value = value;
    __atomic_store_n(self->address, value, __ATOMIC_RELAXED);
}

static int heartbeat_init(Heartbeat *self, PyObject *arguments, PyObject *keywords) {
    PyObject *source;
    Py_buffer page;
    static char *names[] = {"page", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O", names, &source)) return -1;
    if (get_word_buffer(source, &page, WIRE_STATUS_NBYTES) < 0) return -1;
    if (self->word.address != NULL) { /* looked for now, because the source's code could call __init__ too */
        PyBuffer_Release(&page);
        PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
        return -1;
    }
    self->page = page;
    self->word.address = (uint64_t *)((char *)self->page.buf + WIRE_HEARTBEAT_OFFSET);
    return 0;
}

static void heartbeat_dealloc(Heartbeat *self) {
    if (self->word.address != NULL) PyBuffer_Release(&self->page);
    free_object((PyObject *)self);
}

static int is_initialised(const Heartbeat *self) {
    if (self->word.address != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ has not run: there is no page");
    return 0;
}

PyDoc_STRVAR(touch_doc, "touch()\n--\n\nNote that the worker works now.");

static PyObject *py_touch(Heartbeat *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    heartbeat_touch(&self->word);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(age_ms_doc,
             "age_ms()\n--\n\nMilliseconds since the worker last worked; None if it never has, or if what is there is "
             "no time.");

static PyObject *py_age_ms(Heartbeat *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    uint64_t value = __atomic_load_n(self->word.address, __ATOMIC_RELAXED);
    char digits[WIRE_HEARTBEAT_DIGITS];
    memcpy(digits, &value, sizeof digits);
    uint32_t then = 0;
    for (int place = 0; place < WIRE_HEARTBEAT_DIGITS; place++) {
        char digit = digits[place];
        if (digit >= '0' && digit <= '9') then = then << 4 | (uint32_t)(digit - '0');
        else if (digit >= 'a' && digit <= 'f') then = then << 4 | (uint32_t)(digit - 'a' + 10);
        else Py_RETURN_NONE;
    }
    double fraction;
    uint32_t age = now_word_ms(CLOCK_MONOTONIC, &fraction) - then;
    /* The worker may have touched it after we read the clock: then the difference wraps around. */
    return PyFloat_FromDouble(age > UINT32_MAX / 2 ? 0.0 : (double)age + fraction);
}

static PyMethodDef heartbeat_methods[] = {
    {"touch", (PyCFunction)py_touch, METH_NOARGS, touch_doc},
    {"age_ms", (PyCFunction)py_age_ms, METH_NOARGS, age_ms_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot heartbeat_slots[] = {
    {Py_tp_doc, "Heartbeat(page)\n--\n\nThe word of a mapped status page that says when the worker last worked."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, heartbeat_init},
    {Py_tp_dealloc, heartbeat_dealloc},
    {Py_tp_methods, heartbeat_methods},
    {0, NULL},
};

PyType_Spec heartbeat_spec = {
    .name = "tr_mmap.native.Heartbeat",
    .basicsize = sizeof(Heartbeat),
    .flags = TYPE_FLAGS,
    .slots = heartbeat_slots,
};
