/* The controller's short cut: a request and its answer in two calls, if they are like most. */
#include "end.h"

#include <string.h>

typedef struct {
    End end;
    PyObject *response_type;
} Asker;

/* What tensors that are lent for one request go by, in order; as in stores/segments.py. */
static const char *const LENT_TAGS[] = {"$0", "$1", "$2",  "$3",  "$4",  "$5",  "$6",  "$7",
                                        "$8", "$9", "$10", "$11", "$12", "$13", "$14", "$15"};
enum { TAG_NBYTES = 4 }; /* most that one takes as a word, with the space before it */

_Static_assert(sizeof LENT_TAGS / sizeof *LENT_TAGS == MOST_TENSORS, "a tag for each");

static int asker_init(Asker *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"out", "own", "peer_bell", "own_bell", "pool", "mapped", "held", "response_type", NULL};
    PyObject *parts[7], *response_type;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOOOOOO", names, parts, parts + 1, parts + 2, parts + 3,
                                     parts + 4, parts + 5, parts + 6, &response_type) ||
        end_init(&self->end, parts) < 0)
        return -1;
    Py_XSETREF(self->response_type, Py_NewRef(response_type));
    return 0;
}

static int asker_traverse(Asker *self, visitproc visit, void *arg) {
    Py_VISIT(self->response_type);
    return end_traverse(&self->end, visit, arg);
}

static int asker_clear(Asker *self) {
    Py_CLEAR(self->response_type);
    return end_clear(&self->end);
}

static int is_open(const Asker *self) {
    if (self->response_type != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "the asker has no end");
    return 0;
}

/* Publish what a request lends, and name it in the message; 0 if that needs more thought, -1 with an exception. */
static int publish_all(End *end, PyObject *tensors, Message *message) {
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(tensors); index++) {
        PyObject *segment = publish_again(end->pool, PyTuple_GET_ITEM(tensors, index));
        if (segment == NULL) return -1;
        if (segment == Py_None) {
            Py_DECREF(segment);
            return 0;
        }
        int code = PyList_Append(end->held, segment);
        if (code < 0 && owned_release((Owned *)segment) < 0) PyErr_WriteUnraisable(segment);
        Py_DECREF(segment); /* the list holds it */
        if (code < 0) return -1;
        if (!end_refer(message, segment)) return 0;
        message->tensors[index].tag = (Span){LENT_TAGS[index], (Py_ssize_t)strlen(LENT_TAGS[index])};
    }
    return 1;
}

/* The parameters with the tags after them, as words; 0 if they are too long. */
static int add_tags(Message *message, char *words) {
    Py_ssize_t nbytes = message->text.nbytes;
    if (message->count == 0) return 1;
    if (nbytes > MESSAGE_NBYTES) return 0;
    memcpy(words, message->text.text, (size_t)nbytes);
    for (int index = 0; index < message->count; index++) {
        Span tag = message->tensors[index].tag;
        if (nbytes != 0) words[nbytes++] = ' ';
        memcpy(words + nbytes, tag.text, (size_t)tag.nbytes);
        nbytes += tag.nbytes;
    }
    message->text.text = words;
    message->text.nbytes = nbytes;
    return 1;
}

PyDoc_STRVAR(ask_doc,
             "ask(seq, command, parameters, tensors)\n--\n\nPublish the tensors of a tuple, send the request, and ring.\n\n"
             "Returns:\n    Whether that is done. If not it needs more thought, and nothing was sent.");

static PyObject *ask(Asker *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_open(self)) return NULL;
    if (count != 4 || !PyTuple_CheckExact(arguments[3])) {
        PyErr_SetString(PyExc_TypeError, "ask takes a number, a command, its parameters and a tuple");
        return NULL;
    }
    End *end = &self->end;
    Message message;
    Draft draft;
    char words[MESSAGE_NBYTES + MOST_TENSORS * TAG_NBYTES];
    long seq = PyLong_AsLong(arguments[0]);
    if (seq == -1 && PyErr_Occurred()) return NULL;
    message.count = 0;
    message.remark.nbytes = 0;
    if (!span_of(arguments[1], &message.command) || message.command.nbytes == 0 ||
        !span_of(arguments[2], &message.text) || PyTuple_GET_SIZE(arguments[3]) > MOST_TENSORS ||
        PyList_GET_SIZE(end->held) != 0)
        Py_RETURN_FALSE;
    int is_sent = publish_all(end, arguments[3], &message);
    if (is_sent > 0) {
        message.timestamp = now_ms();
        is_sent = add_tags(&message, words) && message_write(&draft, &message, 0) &&
                  page_put(end->out, seq, draft.text, draft.nbytes);
    }
    if (is_sent > 0) {
        ring_bell(end->peer_bell);
        Py_RETURN_TRUE;
    }
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (end_release(end, 0) < 0) {
        Py_XDECREF(type), Py_XDECREF(value), Py_XDECREF(trace);
        return NULL;
    }
    PyErr_Restore(type, value, trace);
    return is_sent < 0 ? NULL : Py_NewRef(Py_False);
}

static PyObject *text_of(Span span) { return PyUnicode_DecodeUTF8(span.text, span.nbytes, NULL); }

/* Views of all that a message names; NULL if one cannot be had that simply, with an exception or not. */
static PyObject *view_all(const End *end, const Message *message) {
    PyObject *arrays = PyList_New(message->count);
    for (int index = 0; arrays != NULL && index < message->count; index++) {
        PyObject *name = text_of(message->tensors[index].segment);
        PyObject *array = name == NULL ? NULL : end_view(end, name, message->tensors[index].seq);
        Py_XDECREF(name);
        if (array == NULL) Py_CLEAR(arrays);
        else PyList_SET_ITEM(arrays, index, array);
    }
    return arrays;
}

static PyObject *response_of(const Asker *self, const Message *message) {
    PyObject *fields[] = {PyLong_FromUnsignedLongLong(message->seq), text_of(message->command), text_of(message->text),
                          text_of(message->remark), PyLong_FromUnsignedLongLong(message->timestamp)};
    enum { COUNT = sizeof fields / sizeof *fields };
    int is_whole = 1;
    for (int index = 0; index < COUNT; index++) is_whole &= fields[index] != NULL;
    PyObject *response = is_whole ? PyObject_Vectorcall(self->response_type, fields, COUNT, NULL) : NULL;
    for (int index = 0; index < COUNT; index++) Py_XDECREF(fields[index]);
    return response;
}

/* The answer as Python has it; NULL if it cannot be had that simply, with an exception or not. */
static PyObject *answer_of(const Asker *self, const Message *message) {
    PyObject *arrays = view_all(&self->end, message);
    if (arrays == NULL) return NULL;
    PyObject *response = response_of(self, message);
    PyObject *answer = response == NULL ? NULL : PyTuple_Pack(2, response, arrays);
    Py_DECREF(arrays);
    Py_XDECREF(response);
    if (answer == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) PyErr_Clear();
    return answer;
}

PyDoc_STRVAR(hear_doc,
             "hear(seq, timeout_s, stop)\n--\n\nAwait the answer to a request, and release what that lent.\n\n"
             "Args:\n    stop: asked before each sleep; True ends the wait.\n\nReturns:\n    The response, and a list of views of its tensors. None if there "
             "is none, or if it needs more\n    thought: then it waits to be taken.");

static PyObject *hear(Asker *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_open(self)) return NULL;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "hear takes a number, a time and a function");
        return NULL;
    }
    uint64_t seq = PyLong_AsUnsignedLongLong(arguments[0]);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    double timeout_s = PyFloat_AsDouble(arguments[1]);
    if (timeout_s == -1.0 && PyErr_Occurred()) return NULL;
    Message message;
    PyObject *line = end_await(&self->end, timeout_s, ends_by_call, arguments[2], 1, &message);
    if (line == NULL || line == Py_None) return line;
    PyObject *answer = message.seq == seq ? answer_of(self, &message) : NULL;
    Py_DECREF(line);
    if (answer != NULL && end_release(&self->end, 0) == 0) return answer;
    page_restore(self->end.in);
    Py_XDECREF(answer);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef asker_methods[] = {
    {"ask", (PyCFunction)(void (*)(void))ask, METH_FASTCALL, ask_doc},
    {"hear", (PyCFunction)(void (*)(void))hear, METH_FASTCALL, hear_doc},
    {NULL, NULL, 0, NULL},
};

PyTypeObject AskerType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Asker",
    .tp_doc = "Asker(out, own, peer_bell, own_bell, pool, mapped, held, response_type)\n--\n\nThe controller's short cut.",
    .tp_basicsize = sizeof(Asker),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_base = &EndType,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)asker_init,
    .tp_traverse = (traverseproc)asker_traverse,
    .tp_clear = (inquiry)asker_clear,
    .tp_methods = asker_methods,
};
