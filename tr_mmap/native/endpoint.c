/* The base of both fast paths: waits for messages, views the peer's segments, releases this side's. Sends nothing. */
#include "endpoint.h"

#include <string.h>

int endpoint_parse(const Endpoint *self, PyObject *const *arguments, double *slice_s) {
    const ModuleState *state = self->state;
    /* NULL for the slice, which is a number */
    PyTypeObject *const types[ENDPOINT_ARGUMENTS] = {
        state->ring, state->ring, state->semaphore, state->semaphore,
        NULL,                state->free_lists,   &PyDict_Type,     &PyList_Type, &PyTuple_Type};
    for (int index = 0; index < ENDPOINT_ARGUMENTS; index++)
        if (types[index] != NULL && !PyObject_TypeCheck(arguments[index], types[index])) {
            PyErr_Format(PyExc_TypeError, "a %s is needed, not a %s", types[index]->tp_name,
                         Py_TYPE(arguments[index])->tp_name);
            return -1;
        }
    /* What is initialised stays so, so this check is enough. */
    if (!ring_is_initialised(arguments[0]) || !ring_is_initialised(arguments[1]) ||
        !semaphore_is_initialised(arguments[2]) || !semaphore_is_initialised(arguments[3]) ||
        !free_lists_is_initialised(arguments[5]))
        return -1;
    if (PyTuple_GET_SIZE(arguments[8]) != FRAMEWORKS) {
        PyErr_Format(PyExc_ValueError, "whether tensors are private is said for %d frameworks", FRAMEWORKS);
        return -1;
    }
    return parse_slice(arguments[4], slice_s);
}

int endpoint_has_run_init(const Endpoint *self) {
    if (self->out == NULL) return 0;
    PyErr_SetString(PyExc_ValueError, "__init__ runs once only");
    return 1;
}

void endpoint_set(Endpoint *self, PyObject *const *arguments, double slice_s) {
    self->out = Py_NewRef(arguments[0]);
    self->own = Py_NewRef(arguments[1]);
    self->peer_doorbell = Py_NewRef(arguments[2]);
    self->own_doorbell = Py_NewRef(arguments[3]);
    self->slice_s = slice_s;
    self->pool = Py_NewRef(arguments[5]);
    self->mapped = Py_NewRef(arguments[6]);
    self->held = Py_NewRef(arguments[7]);
    for (int index = 0; index < FRAMEWORKS; index++)
        self->is_private[index] = PyTuple_GET_ITEM(arguments[8], index) == Py_True;
    self->generation = fork_generation;
}

int endpoint_traverse(Endpoint *self, visitproc visit, void *arg) {
    VISIT_TYPE_AND_MODULE(self);
    Py_VISIT(self->out);
    Py_VISIT(self->own);
    Py_VISIT(self->peer_doorbell);
    Py_VISIT(self->own_doorbell);
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
    for (int index = 0; index < RECENT_TEXTS; index++) Py_CLEAR(self->recent[index]);
    return 0;
}

void endpoint_dealloc(Endpoint *self) {
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, endpoint_dealloc)
    Py_TYPE(self)->tp_clear((PyObject *)self);
    stateful_free((PyObject *)self);
    Py_TRASHCAN_END
}

PyObject *endpoint_receive(const Endpoint *self, PyObject *name, uint64_t seq, Framework framework) {
    if (framework == FRAMEWORKS || (framework == FRAMEWORK_TORCH && self->state->torch.tensor_type == NULL)) return NULL;
    PyObject *segment = PyDict_GetItemWithError(self->mapped, name);
    if (segment == NULL || !PyObject_TypeCheck(segment, self->state->reader_segment)) return NULL;
    Py_INCREF(segment);
    int is_private = self->is_private[framework];
    /* A small tensor of torch's own is copied as torch allocates it; a small array of numpy's as numpy does. */
    int is_copy = is_private && framework == FRAMEWORK_TORCH && reader_segment_is_small(segment);
    PyObject *array;
    if (is_private && !is_copy) array = reader_segment_private(segment, seq);
    else if (framework == FRAMEWORK_TORCH && !is_copy) array = reader_segment_unguarded_view(segment, seq);
    else array = reader_segment_view(segment, seq);
    Py_DECREF(segment);
    if (array == NULL && PyErr_ExceptionMatches(PyExc_LookupError)) PyErr_Clear(); /* the slow path explains more */
    return framework == FRAMEWORK_TORCH && array != NULL ? torch_tensor_received(self->state, array, is_copy) : array;
}

/* -1 with an exception, and then it is still held. */
static int release(const Endpoint *self, PyObject *segment) {
    if (segment == Py_None) return 0; /* see remove_released() */
    if (PyObject_TypeCheck(segment, self->state->owner_segment)) return owner_segment_release((OwnerSegment *)segment);
    PyObject *returned = PyObject_CallMethod(segment, "release", NULL);
    Py_XDECREF(returned);
    return returned == NULL ? -1 : 0;
}

/* Remove a segment from the list, unless its release did. */
static int remove_released(PyObject *held, PyObject *segment) {
    if (PyList_GET_SIZE(held) == 0 || PyList_GET_ITEM(held, 0) != segment) return 0;
    if (PyList_SetSlice(held, 0, 1, NULL) == 0) return 0;
    PyList_SetItem(held, 0, Py_NewRef(Py_None)); /* needs no memory, so nothing is released twice */
    return -1;
}

int endpoint_release(Endpoint *self) {
    /* Code that a release runs may change the list. So this ends after as many releases as there were segments, or when
     * the list is empty. */
    for (Py_ssize_t count = PyList_GET_SIZE(self->held); count > 0 && PyList_GET_SIZE(self->held) > 0; count--) {
        PyObject *segment = Py_NewRef(PyList_GET_ITEM(self->held, 0));
        int code = release(self, segment) < 0 || remove_released(self->held, segment) < 0;
        Py_DECREF(segment);
        if (code) return -1;
    }
    return 0;
}

int message_add_segment(const Endpoint *self, Message *message, PyObject *segment) {
    if (message->count == MAX_CANONICAL_TENSORS || !PyObject_TypeCheck(segment, self->state->owner_segment)) return 0;
    OwnerSegment *owned = (OwnerSegment *)segment;
    Ref *ref = &message->tensors[message->count];
    ref->tag = EMPTY_SPAN;
    ref->seq = owned->seq;
    if (owned->name == NULL || !span_of(owned->name, &ref->segment)) return 0;
    message->count++;
    return 1;
}

int message_add_view(const Endpoint *self, Message *message, PyObject *view, PyObject *links) {
    if (message->count == MAX_CANONICAL_TENSORS || links == NULL) return 0;
    Ref *ref = &message->tensors[message->count];
    ref->tag = EMPTY_SPAN;
    PyObject *name = find_link(self->state, view, links, &ref->seq);
    if (name == NULL || !span_of(name, &ref->segment)) return 0;
    message->count++;
    return 1;
}

PyObject *text_of(Endpoint *self, Span span) {
    /* An earlier text may have set an exception. Then to decode another one that is no UTF-8 would be a SystemError. */
    if (PyErr_Occurred()) return NULL;
    if (span.form == ESCAPED) return unescaped(span);
    if (span.nbytes == 0 || span.nbytes > MAX_RECENT_NBYTES) return PyUnicode_DecodeUTF8(span.text, span.nbytes, NULL);
    /* The same command, tags and segments come again and again; the text that we have knows its hash, too. */
    unsigned place = (unsigned)span.nbytes * 3 + (unsigned char)span.text[span.nbytes - 1];
    PyObject **recent = &self->recent[place % RECENT_TEXTS];
    if (*recent != NULL && PyUnicode_GET_LENGTH(*recent) == span.nbytes &&
        memcmp(PyUnicode_1BYTE_DATA(*recent), span.text, (size_t)span.nbytes) == 0)
        return Py_NewRef(*recent);
    PyObject *text = PyUnicode_DecodeUTF8(span.text, span.nbytes, NULL);
    if (text != NULL && PyUnicode_IS_ASCII(text)) Py_XSETREF(*recent, Py_NewRef(text));
    return text;
}

PyObject *construct(PyObject *type, PyObject *const *arguments, size_t count) {
    int are_complete = 1;
    for (size_t index = 0; index < count; index++) are_complete &= arguments[index] != NULL;
    PyObject *made = are_complete ? PyObject_Vectorcall(type, arguments, count, NULL) : NULL;
    for (size_t index = 0; index < count; index++) Py_XDECREF(arguments[index]);
    return made;
}

static PyType_Slot endpoint_slots[] = {
    {Py_tp_doc, "One side of a session."},
    {Py_tp_traverse, endpoint_traverse},
    {Py_tp_clear, endpoint_clear},
    {Py_tp_dealloc, endpoint_dealloc},
    {0, NULL},
};

PyType_Spec endpoint_spec = {
    .name = "tr_mmap.native.Endpoint",
    .basicsize = sizeof(Endpoint),
    .flags = TYPE_FLAGS | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = endpoint_slots,
};
