/* The type SentResults: the segments of responses, until the controller has consumed them. Sends nothing. */
#include "sent_results.h"

#include "owner_segment.h"

typedef struct {
    STATEFUL_HEAD
    struct {
        uint64_t order;     /* how many responses were sent before */
        PyObject *segments; /* a list */
    } entries[WIRE_RING_SLOTS]; /* the oldest first, from `first` on */
    unsigned first, count;
} SentResults;

static int release_all(SentResults *self, PyObject *segments) {
    int code = 0;
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(segments) && code == 0; index++) {
        PyObject *segment = PyList_GET_ITEM(segments, index);
        if (PyObject_TypeCheck(segment, self->state->owner_segment)) {
            code = owner_segment_release((OwnerSegment *)segment);
        } else {
            PyObject *returned = PyObject_CallMethod(segment, "release", NULL);
            code = returned == NULL ? -1 : 0;
            Py_XDECREF(returned);
        }
    }
    return code;
}

int sent_results_release(PyObject *results, uint64_t count) {
    SentResults *self = (SentResults *)results;
    int code = 0;
    while (code == 0 && self->count != 0 && self->entries[self->first].order < count) {
        PyObject *segments = self->entries[self->first].segments;
        self->first = (self->first + 1) % WIRE_RING_SLOTS;
        self->count--;
        code = release_all(self, segments);
        Py_DECREF(segments);
    }
    return code;
}

int sent_results_add(PyObject *results, uint64_t order, PyObject *segments) {
    SentResults *self = (SentResults *)results;
    Py_ssize_t count = PyList_GET_SIZE(segments);
    if (count == 0) return 0;
    if (self->count == WIRE_RING_SLOTS) { /* the controller has sent more requests than there may be in flight */
        PyErr_SetString(PyExc_OverflowError, "more responses wait for the controller than a ring has slots");
        return -1;
    }
    PyObject *kept = PyList_GetSlice(segments, 0, count);
    if (kept == NULL) return -1;
    unsigned last = (self->first + self->count) % WIRE_RING_SLOTS;
    self->entries[last].order = order;
    self->entries[last].segments = kept;
    self->count++;
    return PyList_SetSlice(segments, 0, count, NULL);
}

PyDoc_STRVAR(add_doc,
             "add(order, segments)\n--\n\nKeep the segments of a list, and empty it: the response that names them was sent.\n\n"
             "Args:\n    order: how many responses were sent before.\n    segments: a list.");

static PyObject *py_add(SentResults *self, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 2 || !PyList_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "add takes a number and a list");
        return NULL;
    }
    uint64_t order = PyLong_AsUnsignedLongLong(arguments[0]);
    if (order == UINT64_MAX && PyErr_Occurred()) return NULL;
    return sent_results_add((PyObject *)self, order, arguments[1]) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(release_doc, "release(count)\n--\n\nThe controller has consumed so many responses: release their segments.");

static PyObject *py_release(SentResults *self, PyObject *argument) {
    uint64_t count = PyLong_AsUnsignedLongLong(argument);
    if (count == UINT64_MAX && PyErr_Occurred()) return NULL;
    return sent_results_release((PyObject *)self, count) < 0 ? NULL : Py_NewRef(Py_None);
}

static int sent_results_traverse(SentResults *self, visitproc visit, void *arg) {
    VISIT_TYPE_AND_MODULE(self);
    for (unsigned index = 0; index < self->count; index++)
        Py_VISIT(self->entries[(self->first + index) % WIRE_RING_SLOTS].segments);
    return 0;
}

static int sent_results_clear(SentResults *self) {
    while (self->count != 0) {
        PyObject *segments = self->entries[self->first].segments;
        self->first = (self->first + 1) % WIRE_RING_SLOTS;
        self->count--;
        Py_DECREF(segments);
    }
    return 0;
}

static void sent_results_dealloc(SentResults *self) {
    PyObject_GC_UnTrack(self);
    sent_results_clear(self);
    stateful_free((PyObject *)self);
}

static PyMethodDef sent_results_methods[] = {
    {"add", (PyCFunction)(void (*)(void))py_add, METH_FASTCALL, add_doc},
    {"release", (PyCFunction)py_release, METH_O, release_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot sent_results_slots[] = {
    {Py_tp_doc, "SentResults()\n--\n\nThe segments of responses that the controller has not consumed."},
    {Py_tp_new, stateful_new},
    {Py_tp_traverse, sent_results_traverse},
    {Py_tp_clear, sent_results_clear},
    {Py_tp_dealloc, sent_results_dealloc},
    {Py_tp_methods, sent_results_methods},
    {0, NULL},
};

PyType_Spec sent_results_spec = {
    .name = "tr_mmap.native.SentResults",
    .basicsize = sizeof(SentResults),
    .flags = TYPE_FLAGS | Py_TPFLAGS_HAVE_GC,
    .slots = sent_results_slots,
};
