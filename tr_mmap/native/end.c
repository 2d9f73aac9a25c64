/* What the short cuts of both sides share. */
#include "end.h"

static int hold(PyObject **field, PyObject *argument, PyTypeObject *type) {
    if (!PyObject_TypeCheck(argument, type)) {
        PyErr_Format(PyExc_TypeError, "a %s is needed, not a %s", type->tp_name, Py_TYPE(argument)->tp_name);
        return -1;
    }
    Py_XSETREF(*field, Py_NewRef(argument));
    return 0;
}

int end_init(End *self, PyObject *const *arguments) {
    self->slice_s = PyFloat_AsDouble(arguments[4]);
    if (self->slice_s == -1.0 && PyErr_Occurred()) return -1;
    return hold(&self->out, arguments[0], &PageType) < 0 || hold(&self->in, arguments[1], &PageType) < 0 ||
                   hold(&self->peer_bell, arguments[2], &BellType) < 0 ||
                   hold(&self->own_bell, arguments[3], &BellType) < 0 ||
                   hold(&self->pool, arguments[5], &ShelvesType) < 0 ||
                   hold(&self->mapped, arguments[6], &PyDict_Type) < 0 || hold(&self->held, arguments[7], &PyList_Type) < 0
               ? -1
               : 0;
}

int end_traverse(End *self, visitproc visit, void *arg) {
    Py_VISIT(self->pool);
    Py_VISIT(self->mapped);
    Py_VISIT(self->held);
    return 0;
}

int end_clear(End *self) {
    Py_CLEAR(self->out);
    Py_CLEAR(self->in);
    Py_CLEAR(self->peer_bell);
    Py_CLEAR(self->own_bell);
    Py_CLEAR(self->pool);
    Py_CLEAR(self->mapped);
    Py_CLEAR(self->held);
    return 0;
}

static void end_dealloc(End *self) {
    PyObject_GC_UnTrack(self);
    Py_TYPE(self)->tp_clear((PyObject *)self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyObject *text_of(Span span) { return PyUnicode_DecodeUTF8(span.text, span.nbytes, NULL); }

PyObject *make(PyObject *type, PyObject *const *fields, size_t count) {
    int is_whole = 1;
    for (size_t index = 0; index < count; index++) is_whole &= fields[index] != NULL;
    PyObject *made = is_whole ? PyObject_Vectorcall(type, fields, count, NULL) : NULL;
    for (size_t index = 0; index < count; index++) Py_XDECREF(fields[index]);
    return made;
}

PyObject *end_view(const End *self, PyObject *name, uint64_t seq) {
    PyObject *segment = PyDict_GetItemWithError(self->mapped, name);
    if (segment == NULL || !PyObject_TypeCheck(segment, &LeasedType)) return NULL;
    PyObject *array = leased_look(segment, seq);
    if (array == NULL && PyErr_ExceptionMatches(PyExc_LookupError)) PyErr_Clear(); /* the long way says it better */
    return array;
}

int end_refer(Message *message, PyObject *segment) {
    if (message->count == MOST_TENSORS || !PyObject_TypeCheck(segment, &OwnedType)) return 0;
    Owned *owned = (Owned *)segment;
    Ref *ref = &message->tensors[message->count];
    ref->tag = NOTHING;
    ref->seq = owned->seq;
    if (owned->name == NULL || !span_of(owned->name, &ref->segment)) return 0;
    message->count++;
    return 1;
}

int end_release(End *self) {
    Py_ssize_t count = PyList_GET_SIZE(self->held);
    int code = 0;
    for (Py_ssize_t index = 0; index < count; index++) {
        PyObject *segment = PyList_GET_ITEM(self->held, index);
        PyObject *answer = NULL;
        if (PyObject_TypeCheck(segment, &OwnedType)) code |= owned_release((Owned *)segment);
        else if ((answer = PyObject_CallMethod(segment, "release", NULL)) == NULL) code = -1;
        Py_XDECREF(answer);
    }
    return PyList_SetSlice(self->held, 0, count, NULL) < 0 || code < 0 ? -1 : 0;
}

PyObject *end_await(End *self, double timeout_s, Ends ends, void *context, int is_response, Message *message) {
    PyObject *line = page_await(self->in, self->own_bell, timeout_s, self->slice_s, ends, context);
    if (line == Py_None) return line;
    if (line == NULL) {
        if (!page_is_endless(self->in)) return NULL;
        PyErr_Clear();
    } else if (message_read(PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line), is_response, message)) {
        return line;
    }
    Py_XDECREF(line);
    page_restore(self->in);
    return Py_NewRef(Py_None);
}

PyTypeObject EndType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.End",
    .tp_doc = "One side's end of a session.",
    .tp_basicsize = sizeof(End),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_traverse = (traverseproc)end_traverse,
    .tp_clear = (inquiry)end_clear,
    .tp_dealloc = (destructor)end_dealloc,
    .tp_free = PyObject_GC_Del,
};
