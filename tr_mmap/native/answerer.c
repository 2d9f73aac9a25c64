/* The worker's short cut: a request and its answer without the way through Python's objects, if they are like most. */
#include "end.h"

#include <math.h>
#include <string.h>

/* Attributes of Python's objects: first those of an answer, which are what the handler calls the command, the text, a
 * remark of its own, and one of ours. */
enum { COMMAND, RESULT, MESSAGE, COMPLAINT, ANSWER, MAIN_LOGIC, PARAMETERS, SEGMENT, SEQ, NAMES };
enum { ANSWER_FIELDS = ANSWER };

static PyObject *names[NAMES];

static int intern_names(void) {
    static const char *const texts[NAMES] = {"command",    "result",     "message", "complaint", "_answer",
                                             "main_logic", "parameters", "segment", "seq"};
    for (int index = 0; index < NAMES; index++)
        if (names[index] == NULL && (names[index] = PyUnicode_InternFromString(texts[index])) == NULL) return -1;
    return 0;
}

typedef struct {
    End end;
    Py_buffer status; /* status.txt, as in channel/mapped.py */
    PyObject *tags;   /* a dict: where the tensor of a tag is */
    PyObject *lent;   /* a list: tags that are good for the request at hand only */
    PyObject *ends;   /* a list: the controller's end is in it when that has come */
    PyObject *request_type, *ref_type, *answer_type;
} Answerer;

static int answerer_init(Answerer *self, PyObject *arguments, PyObject *keywords) {
    static char *keys[] = {"out",    "own",  "peer_bell", "own_bell",     "slice_s",  "pool",        "mapped", "held",
                           "status", "tags", "ends",      "request_type", "ref_type", "answer_type", NULL};
    PyObject *parts[END_FIELDS], *status, *tags, *ends, *request_type, *ref_type, *answer_type;
    if (self->tags != NULL) {
        PyErr_SetString(PyExc_ValueError, "an answerer is made once");
        return -1;
    }
    Py_CLEAR(self->lent);
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOOOOOOOO!O!OOO", keys, parts, parts + 1, parts + 2,
                                     parts + 3, parts + 4, parts + 5, parts + 6, parts + 7, &status, &PyDict_Type,
                                     &tags, &PyList_Type, &ends, &request_type, &ref_type, &answer_type) ||
        intern_names() < 0 || end_init(&self->end, parts) < 0 || (self->lent = PyList_New(0)) == NULL ||
        hold_buffer(status, &self->status, sizeof(uint64_t)) < 0)
        return -1;
    self->ends = Py_NewRef(ends);
    self->request_type = Py_NewRef(request_type);
    self->ref_type = Py_NewRef(ref_type);
    self->answer_type = Py_NewRef(answer_type);
    self->tags = Py_NewRef(tags);
    return 0;
}

static int answerer_traverse(Answerer *self, visitproc visit, void *arg) {
    Py_VISIT(self->tags);
    Py_VISIT(self->lent);
    Py_VISIT(self->ends);
    Py_VISIT(self->request_type);
    Py_VISIT(self->ref_type);
    Py_VISIT(self->answer_type);
    return end_traverse(&self->end, visit, arg);
}

static int answerer_clear(Answerer *self) {
    if (self->tags != NULL) PyBuffer_Release(&self->status);
    Py_CLEAR(self->tags);
    Py_CLEAR(self->lent);
    Py_CLEAR(self->ends);
    Py_CLEAR(self->request_type);
    Py_CLEAR(self->ref_type);
    Py_CLEAR(self->answer_type);
    return end_clear(&self->end);
}

static int is_open(const Answerer *self) {
    if (self->tags != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "the answerer has no end");
    return 0;
}

/* -- the status, of which only the first word is written here ----------------------------------------------------- */

static const char BUSY[] = "busy\n   ", OK[] = "ok\n     ";

static uint64_t word_of(const char *text) {
    uint64_t word;
    memcpy(&word, text, sizeof word);
    return word;
}

static uint64_t status_of(const Answerer *self) {
    return __atomic_load_n((uint64_t *)self->status.buf, __ATOMIC_RELAXED);
}

/* Replace the status, if it is still what was seen: not if somebody has wanted our end meanwhile. */
static int enter_status(Answerer *self, uint64_t seen, const char *text) {
    return __atomic_compare_exchange_n((uint64_t *)self->status.buf, &seen, word_of(text), 0, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}

/* A short word of a worker that waits: another may take its place in one store. */
static int is_waiting(uint64_t word) {
    return word == word_of(OK) || word == word_of("ready\n  ") || word == word_of("error\n  ");
}

static int is_to_end(void *context) {
    Answerer *self = context;
    return memcmp(self->status.buf, "exit", 4) == 0 || memcmp(self->status.buf, "terminat", 8) == 0 ||
           PyList_GET_SIZE(self->ends) != 0;
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
    if (request != NULL && (end_release(&self->end) < 0 || learn(self, message, refs) < 0)) Py_CLEAR(request);
    Py_DECREF(refs);
    return request;
}

/* Await a request, release what the last answer named, learn the request's tags, and be busy: the request, and the line
 * that the message's spans are of. None if it is time to end, or if it needs more thought and waits to be taken. */
static PyObject *take_request(Answerer *self, Message *message, PyObject **line) {
    *line = end_await(&self->end, INFINITY, is_to_end, self, 0, message);
    if (*line == NULL || *line == Py_None) return *line;
    Span command = message->command;
    uint64_t status = status_of(self);
    int is_usual = command.nbytes != 0 && !(command.nbytes == 4 && memcmp(command.text, "exit", 4) == 0) &&
                   is_waiting(status);
    PyObject *request = is_usual ? begin(self, message) : NULL;
    if (request != NULL && enter_status(self, status, BUSY)) return request;
    Py_XDECREF(request); /* the long way begins it once more, which changes nothing */
    Py_DECREF(*line);
    page_restore(self->end.in);
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) return NULL;
    PyErr_Clear();
    Py_RETURN_NONE;
}

/* -- its tensors -------------------------------------------------------------------------------------------------- */

/* A view of the tensor of a tag; NULL if it cannot be had that simply, with an exception or not. */
static PyObject *fetch(const Answerer *self, PyObject *tag) {
    PyObject *ref = PyDict_GetItemWithError(self->tags, tag);
    if (ref == NULL) return NULL;
    PyObject *name = PyObject_GetAttr(ref, names[SEGMENT]), *number = PyObject_GetAttr(ref, names[SEQ]);
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

/* Send the answer with what is held: 1 if that is done, 0 if it needs more thought and nothing was sent, -1 with an
 * exception. */
static int send(Answerer *self, uint64_t seq, Span command, Span result, Span remark) {
    End *end = &self->end;
    Draft draft;
    Message message = {.timestamp = now_ms(), .command = command, .text = result, .remark = remark, .count = 0};
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(end->held); index++)
        if (!end_refer(&message, PyList_GET_ITEM(end->held, index))) return 0;
    if (!message_write(&draft, &message, 1)) return 0;
    if (!enter_status(self, word_of(BUSY), OK)) return 0; /* the handler has said something else, or we are to end */
    if (forget_lent(self) < 0) return -1;
    if (!page_put(end->out, (long)seq, draft.text, draft.nbytes)) return 0;
    ring_bell(end->peer_bell);
    return 1;
}

/* What a handler has said, or another text if that is empty; 0 if it needs more thought. */
static int span_or(PyObject *said, Span otherwise, Span *span) {
    if (!span_of(said, span)) return 0;
    if (span->nbytes == 0) *span = otherwise;
    return 1;
}

/* Send what stands in an answer; as send(). */
static int send_answer(Answerer *self, const Message *request, PyObject *answer) {
    PyObject *said[ANSWER_FIELDS];
    Span command, result = {"ok", 2}, remark;
    int is_sent = 1;
    for (int index = 0; index < ANSWER_FIELDS; index++)
        if ((said[index] = PyObject_GetAttr(answer, names[index])) == NULL) is_sent = -1;
    if (is_sent > 0)
        is_sent = (said[RESULT] == Py_None || span_of(said[RESULT], &result)) &&
                  span_or(said[COMMAND], request->command, &command) && span_or(said[COMPLAINT], NOTHING, &remark) &&
                  span_or(said[MESSAGE], remark, &remark);
    if (is_sent > 0) is_sent = send(self, request->seq, command, result, remark);
    for (int index = 0; index < ANSWER_FIELDS; index++) Py_XDECREF(said[index]);
    return is_sent;
}

/* The exception that is set as an object with its traceback, if a handler may raise it. */
static PyObject *error_of_handler(void) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return NULL;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace != NULL) PyException_SetTraceback(value, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return value;
}

PyDoc_STRVAR(serve_doc,
             "serve(server)\n--\n\nAwait a request, have the server's main_logic() handle it, and send the answer.\n\nReturns:\n"
             "    True if that is done. None if it is time to end, or if the request needs more thought: then it waits\n"
             "    to be taken. Else what is left to be finished: the request, the answer, what main_logic() returned, and\n"
             "    what it raised or None.");

static PyObject *serve(Answerer *self, PyObject *server) {
    if (!is_open(self)) return NULL;
    Message message;
    PyObject *line, *request = take_request(self, &message, &line);
    if (request == NULL || request == Py_None) return request;
    PyObject *result = NULL, *is_known = NULL, *error = NULL;
    PyObject *answer = PyObject_CallNoArgs(self->answer_type);
    PyObject *words[] = {server, PyObject_GetAttr(request, names[COMMAND]), PyObject_GetAttr(request, names[PARAMETERS])};
    if (answer != NULL && words[1] != NULL && words[2] != NULL && PyObject_SetAttr(server, names[ANSWER], answer) == 0) {
        is_known = PyObject_VectorcallMethod(names[MAIN_LOGIC], words, 3, NULL);
        if (is_known == NULL) error = error_of_handler();
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace); /* what no handler raises: the worker is to end */
        if (PyObject_SetAttr(server, names[ANSWER], Py_None) < 0) PyErr_WriteUnraisable(server);
        PyErr_Restore(type, value, trace);
    }
    if (is_known != NULL || error != NULL) {
        int is_sent = is_known == Py_True ? send_answer(self, &message, answer) : 0;
        if (is_sent > 0) result = Py_NewRef(Py_True);
        else if (is_sent == 0)
            result = PyTuple_Pack(4, request, answer, is_known == NULL ? Py_None : is_known,
                                  error == NULL ? Py_None : error);
    }
    Py_XDECREF(words[1]);
    Py_XDECREF(words[2]);
    Py_XDECREF(is_known);
    Py_XDECREF(error);
    Py_XDECREF(answer);
    Py_DECREF(request);
    Py_DECREF(line);
    return result;
}

static PyMethodDef answerer_methods[] = {
    {"serve", (PyCFunction)serve, METH_O, serve_doc},
    {"fetch_again", (PyCFunction)fetch_again, METH_O, fetch_again_doc},
    {NULL, NULL, 0, NULL},
};

PyTypeObject AnswererType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Answerer",
    .tp_doc = "Answerer(out, own, peer_bell, own_bell, slice_s, pool, mapped, held, status, tags, ends, request_type, "
              "ref_type, answer_type)\n--\n\n"
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
