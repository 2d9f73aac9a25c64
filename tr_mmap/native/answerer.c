/* The worker's short cut: a request and its answer without the way through Python's objects, if they are like most. */
#include "end.h"

#include <math.h>
#include <string.h>

typedef struct {
    End end;
    Py_buffer status; /* status.txt, as in channel/mapped.py */
    PyObject *tags;   /* a dict: where the tensor of a tag is */
    PyObject *lent;   /* a list: tags that are good for the request at hand only */
    PyObject *request_type, *ref_type;
    PyObject *ends;   /* a list: the controller's end is in it when that has come */
    PyObject *segment_name, *seq_name; /* of a reference's attributes */
} Answerer;

static int answerer_init(Answerer *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"out",    "own",  "peer_bell", "own_bell", "slice_s",      "pool",     "mapped",
                            "held",   "status", "tags",    "ends",     "request_type", "ref_type", NULL};
    PyObject *parts[END_FIELDS], *status, *tags, *ends, *request_type, *ref_type;
    if (self->tags != NULL) {
        PyErr_SetString(PyExc_ValueError, "an answerer is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOOOOOOOO!O!OO", names, parts, parts + 1, parts + 2,
                                     parts + 3, parts + 4, parts + 5, parts + 6, parts + 7, &status, &PyDict_Type, &tags,
                                     &PyList_Type, &ends, &request_type, &ref_type) ||
        end_init(&self->end, parts) < 0 || (self->lent = PyList_New(0)) == NULL ||
        (self->segment_name = PyUnicode_InternFromString("segment")) == NULL ||
        (self->seq_name = PyUnicode_InternFromString("seq")) == NULL ||
        hold_buffer(status, &self->status, sizeof(uint64_t)) < 0)
        return -1;
    self->ends = Py_NewRef(ends);
    self->request_type = Py_NewRef(request_type);
    self->ref_type = Py_NewRef(ref_type);
    self->tags = Py_NewRef(tags);
    return 0;
}

static int answerer_traverse(Answerer *self, visitproc visit, void *arg) {
    Py_VISIT(self->tags);
    Py_VISIT(self->lent);
    Py_VISIT(self->ends);
    Py_VISIT(self->request_type);
    Py_VISIT(self->ref_type);
    return end_traverse(&self->end, visit, arg);
}

static int answerer_clear(Answerer *self) {
    if (self->tags != NULL) PyBuffer_Release(&self->status);
    Py_CLEAR(self->tags);
    Py_CLEAR(self->lent);
    Py_CLEAR(self->ends);
    Py_CLEAR(self->request_type);
    Py_CLEAR(self->ref_type);
    Py_CLEAR(self->segment_name);
    Py_CLEAR(self->seq_name);
    return end_clear(&self->end);
}

static int is_open(const Answerer *self) {
    if (self->tags != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "the answerer has no end");
    return 0;
}

/* -- the status, of which only the first word is written here ----------------------------------------------------- */

static uint64_t word_of(const char *text) {
    uint64_t word;
    memcpy(&word, text, sizeof word);
    return word;
}

/* The status is a short word, and not the wish that the worker end: another may take its place in one store. */
static int may_enter(const Answerer *self) {
    uint64_t word = __atomic_load_n((uint64_t *)self->status.buf, __ATOMIC_RELAXED);
    char text[sizeof word];
    memcpy(text, &word, sizeof word);
    return memcmp(text, "exit", 4) != 0 && memchr(text, '\n', sizeof text) != NULL;
}

static void enter_status(Answerer *self, const char *text) {
    __atomic_store_n((uint64_t *)self->status.buf, word_of(text), __ATOMIC_RELAXED);
}

static int is_to_end(void *context) {
    Answerer *self = context;
    return memcmp(self->status.buf, "exit", 4) == 0 || PyList_GET_SIZE(self->ends) != 0;
}

/* -- a request ---------------------------------------------------------------------------------------------------- */

static PyObject *refs_of(const Answerer *self, const Message *message) {
    PyObject *refs = PyList_New(message->count);
    for (int index = 0; refs != NULL && index < message->count; index++) {
        const Ref *ref = &message->tensors[index];
        PyObject *fields[] = {text_of(ref->tag), text_of(ref->segment), PyLong_FromUnsignedLongLong(ref->seq)};
        PyObject *made = make(self->ref_type, fields, sizeof fields / sizeof *fields);
        if (made == NULL) Py_CLEAR(refs);
        else PyList_SET_ITEM(refs, index, made);
    }
    return refs;
}

/* Learn the tags that a request brings; -1 with an exception. */
static int learn(Answerer *self, const Message *message, PyObject *refs) {
    if (PyList_SetSlice(self->lent, 0, PyList_GET_SIZE(self->lent), NULL) < 0) return -1;
    for (int index = 0; index < message->count; index++) {
        Span tag = message->tensors[index].tag;
        PyObject *name = text_of(tag);
        int code = name == NULL ? -1 : PyDict_SetItem(self->tags, name, PyList_GET_ITEM(refs, index));
        if (code == 0 && tag.nbytes != 0 && tag.text[0] == '$') code = PyList_Append(self->lent, name);
        Py_XDECREF(name);
        if (code < 0) return -1;
    }
    return 0;
}

/* The request as Python has it, begun; NULL with an exception. */
static PyObject *begin(Answerer *self, const Message *message) {
    PyObject *refs = refs_of(self, message);
    if (refs == NULL) return NULL;
    PyObject *fields[] = {PyLong_FromUnsignedLongLong(message->seq), text_of(message->command), text_of(message->text),
                          PyLong_FromUnsignedLongLong(message->timestamp), Py_NewRef(refs)};
    PyObject *request = make(self->request_type, fields, sizeof fields / sizeof *fields);
    if (request != NULL && (end_release(&self->end, 0) < 0 || learn(self, message, refs) < 0)) Py_CLEAR(request);
    Py_DECREF(refs);
    return request;
}

PyDoc_STRVAR(listen_doc,
             "listen()\n--\n\nAwait a request, release what the last answer named, learn the request's tags, and be busy.\n\nReturns:\n"
             "    The request. None if it is time to end, or if it needs more thought: then it waits to be taken.");

static PyObject *listen_(Answerer *self, PyObject *unused) {
    (void)unused;
    if (!is_open(self)) return NULL;
    Message message;
    PyObject *line = end_await(&self->end, INFINITY, is_to_end, self, 0, &message);
    if (line == NULL || line == Py_None) return line;
    Span command = message.command;
    int is_usual = command.nbytes != 0 && !(command.nbytes == 4 && memcmp(command.text, "exit", 4) == 0) &&
                   may_enter(self);
    PyObject *request = is_usual ? begin(self, &message) : NULL;
    Py_DECREF(line);
    if (request != NULL) {
        enter_status(self, "busy\n   ");
        return request;
    }
    page_restore(self->end.in);
    if (!PyErr_Occurred()) Py_RETURN_NONE;
    if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) return NULL;
    PyErr_Clear();
    Py_RETURN_NONE;
}

/* -- its tensors -------------------------------------------------------------------------------------------------- */

/* A view of the tensor of a tag; NULL if it cannot be had that simply, with an exception or not. */
static PyObject *fetch(const Answerer *self, PyObject *tag) {
    PyObject *ref = PyDict_GetItemWithError(self->tags, tag);
    if (ref == NULL) return NULL;
    PyObject *name = PyObject_GetAttr(ref, self->segment_name), *number = PyObject_GetAttr(ref, self->seq_name);
    PyObject *array = NULL;
    if (name != NULL && number != NULL && PyUnicode_CheckExact(name) && PyLong_CheckExact(number)) {
        uint64_t seq = PyLong_AsUnsignedLongLong(number);
        if (seq == UINT64_MAX && PyErr_Occurred()) PyErr_Clear();
        else array = end_view(&self->end, name, seq);
    }
    Py_XDECREF(name);
    Py_XDECREF(number);
    return array;
}

PyDoc_STRVAR(fetch_again_doc,
             "fetch_again(parameters)\n--\n\nViews of the tensors whose tags are the words of a text.\n\nReturns:\n"
             "    A list; None if that needs more thought: a tag that is none, commas, a tensor that is not mapped yet.");

static PyObject *fetch_again(Answerer *self, PyObject *parameters) {
    Span words;
    if (!is_open(self)) return NULL;
    if (!span_of(parameters, &words)) Py_RETURN_NONE;
    const char *at = words.text, *end = at + words.nbytes;
    PyObject *arrays = PyList_New(0);
    while (arrays != NULL) {
        while (at < end && *at == ' ') at++;
        if (at == end) return arrays;
        const char *first = at;
        while (at < end && *at != ' ' && *at != ',' && (unsigned char)*at < 0x80) at++;
        PyObject *array = NULL;
        if (at == end || *at == ' ') { /* else what split_words() makes of it */
            PyObject *tag = PyUnicode_FromStringAndSize(first, at - first);
            array = tag == NULL ? NULL : fetch(self, tag);
            Py_XDECREF(tag);
        }
        if (array == NULL || PyList_Append(arrays, array) < 0) Py_CLEAR(arrays);
        Py_XDECREF(array);
    }
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* -- and its answer ----------------------------------------------------------------------------------------------- */

static int forget_lent(Answerer *self) {
    for (Py_ssize_t index = PyList_GET_SIZE(self->lent); index-- > 0;) {
        if (PyDict_DelItem(self->tags, PyList_GET_ITEM(self->lent, index)) == 0) continue;
        if (!PyErr_ExceptionMatches(PyExc_KeyError)) return -1;
        PyErr_Clear();
    }
    return PyList_SetSlice(self->lent, 0, PyList_GET_SIZE(self->lent), NULL);
}

PyDoc_STRVAR(answer_doc,
             "answer(seq, command, result, message)\n--\n\nForget the tags that were lent, be done, send the answer with what is held, "
             "and ring.\n\nReturns:\n    Whether that is done. If not it needs more thought, and nothing was sent.");

static PyObject *answer(Answerer *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_open(self)) return NULL;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "answer takes a number and three texts");
        return NULL;
    }
    long seq = PyLong_AsLong(arguments[0]);
    if (seq == -1 && PyErr_Occurred()) return NULL;
    End *end = &self->end;
    Message message;
    Draft draft;
    message.count = 0;
    int is_usual = span_of(arguments[1], &message.command) && span_of(arguments[2], &message.text) &&
                   span_of(arguments[3], &message.remark) && may_enter(self);
    for (Py_ssize_t index = 0; is_usual && index < PyList_GET_SIZE(end->held); index++)
        is_usual = end_refer(&message, PyList_GET_ITEM(end->held, index));
    message.timestamp = now_ms();
    if (!is_usual || !message_write(&draft, &message, 1)) Py_RETURN_FALSE;
    if (forget_lent(self) < 0) return NULL;
    enter_status(self, "ok\n     ");
    if (!page_put(end->out, seq, draft.text, draft.nbytes)) Py_RETURN_FALSE;
    ring_bell(end->peer_bell);
    Py_RETURN_TRUE;
}

static PyMethodDef answerer_methods[] = {
    {"listen", (PyCFunction)listen_, METH_NOARGS, listen_doc},
    {"fetch_again", (PyCFunction)fetch_again, METH_O, fetch_again_doc},
    {"answer", (PyCFunction)(void (*)(void))answer, METH_FASTCALL, answer_doc},
    {NULL, NULL, 0, NULL},
};

PyTypeObject AnswererType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Answerer",
    .tp_doc = "Answerer(out, own, peer_bell, own_bell, slice_s, pool, mapped, held, status, tags, ends, request_type, ref_type)\n--\n\n"
              "The worker's short cut.",
    .tp_basicsize = sizeof(Answerer),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_base = &EndType,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)answerer_init,
    .tp_traverse = (traverseproc)answerer_traverse,
    .tp_clear = (inquiry)answerer_clear,
    .tp_methods = answerer_methods,
};
