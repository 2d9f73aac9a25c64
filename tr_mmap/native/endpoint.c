/* The base of both fast paths: waits for messages, views the peer's segments, releases this side's. Sends nothing. */
#include "endpoint.h"

static int set_field(PyObject **field, PyObject *argument, PyTypeObject *type) {
    if (!PyObject_TypeCheck(argument, type)) {
        PyErr_Format(PyExc_TypeError, "a %s is needed, not a %s", type->tp_name, Py_TYPE(argument)->tp_name);
        return -1;
    }
    Py_XSETREF(*field, Py_NewRef(argument));
    return 0;
}

int endpoint_init(Endpoint *self, PyObject *const *arguments) {
    self->slice_s = PyFloat_AsDouble(arguments[4]);
    if (self->slice_s == -1.0 && PyErr_Occurred()) return -1;
    int has_failed = set_field(&self->out, arguments[0], &MessagePageType) < 0 ||
                     set_field(&self->own, arguments[1], &MessagePageType) < 0 ||
                     set_field(&self->peer_doorbell, arguments[2], &SemaphoreType) < 0 ||
                     set_field(&self->own_doorbell, arguments[3], &SemaphoreType) < 0 ||
                     set_field(&self->pool, arguments[5], &FreeListsType) < 0 ||
                     set_field(&self->mapped, arguments[6], &PyDict_Type) < 0 ||
                     set_field(&self->held, arguments[7], &PyList_Type) < 0;
    return has_failed ? -1 : 0;
}

int endpoint_traverse(Endpoint *self, visitproc visit, void *arg) {
    Py_VISIT(self->pool);
    Py_VISIT(self->mapped);
    Py_VISIT(self->held);
    return 0;
}

int endpoint_clear(Endpoint *self) {
    Py_CLEAR(self->out);
    Py_CLEAR(self->own);
    Py_CLEAR(self->peer_doorbell);
    Py_CLEAR(self->own_doorbell);
    Py_CLEAR(self->pool);
    Py_CLEAR(self->mapped);
    Py_CLEAR(self->held);
    return 0;
}

static void endpoint_dealloc(Endpoint *self) {
    PyObject_GC_UnTrack(self);
    Py_TYPE(self)->tp_clear((PyObject *)self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyObject *endpoint_view(const Endpoint *self, PyObject *name, uint64_t seq) {
    PyObject *segment = PyDict_GetItemWithError(self->mapped, name);
    if (segment == NULL || !PyObject_TypeCheck(segment, &ReaderSegmentType)) return NULL;
    PyObject *array = reader_segment_view(segment, seq);
    if (array == NULL && PyErr_ExceptionMatches(PyExc_LookupError)) PyErr_Clear(); /* the slow path explains more */
    return array;
}

int endpoint_release(Endpoint *self) {
    Py_ssize_t count = PyList_GET_SIZE(self->held);
    int code = 0;
    for (Py_ssize_t index = 0; index < count; index++) {
        PyObject *segment = PyList_GET_ITEM(self->held, index);
        PyObject *returned = NULL;
        if (PyObject_TypeCheck(segment, &OwnerSegmentType)) code |= owner_segment_release((OwnerSegment *)segment);
        else if ((returned = PyObject_CallMethod(segment, "release", NULL)) == NULL) code = -1;
        Py_XDECREF(returned);
    }
    return PyList_SetSlice(self->held, 0, count, NULL) < 0 || code < 0 ? -1 : 0;
}

PyObject *endpoint_receive(Endpoint *self, double timeout_s, StopCheck should_stop, void *context, int is_response,
                           Message *message) {
    PyObject *line = message_page_wait(self->own, self->own_doorbell, timeout_s, self->slice_s, should_stop, context);
    if (line == Py_None) return line;
    if (line == NULL) {
        if (!message_page_is_unterminated(self->own)) return NULL;
        PyErr_Clear();
    } else if (message_read(PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line), is_response, message)) {
        return line;
    }
    Py_XDECREF(line);
    message_page_put_back(self->own);
    return Py_NewRef(Py_None);
}

int message_add_segment(Message *message, PyObject *segment) {
    if (message->count == MAX_CANONICAL_TENSORS || !PyObject_TypeCheck(segment, &OwnerSegmentType)) return 0;
    OwnerSegment *owned = (OwnerSegment *)segment;
    Ref *ref = &message->tensors[message->count];
    ref->tag = EMPTY_SPAN;
    ref->seq = owned->seq;
    if (owned->name == NULL || !span_of(owned->name, &ref->segment)) return 0;
    message->count++;
    return 1;
}

PyObject *text_of(Span span) { return PyUnicode_DecodeUTF8(span.text, span.nbytes, NULL); }

PyObject *construct(PyObject *type, PyObject *const *arguments, size_t count) {
    int are_complete = 1;
    for (size_t index = 0; index < count; index++) are_complete &= arguments[index] != NULL;
    PyObject *made = are_complete ? PyObject_Vectorcall(type, arguments, count, NULL) : NULL;
    for (size_t index = 0; index < count; index++) Py_XDECREF(arguments[index]);
    return made;
}

PyTypeObject EndpointType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Endpoint",
    .tp_doc = "One side of a session.",
    .tp_basicsize = sizeof(Endpoint),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_traverse = (traverseproc)endpoint_traverse,
    .tp_clear = (inquiry)endpoint_clear,
    .tp_dealloc = (destructor)endpoint_dealloc,
    .tp_free = PyObject_GC_Del,
};
