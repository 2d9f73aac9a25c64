/* The controller's short cut: a request and its answer in two calls, if they are like most. */
#include "end.h"

#include <string.h>
#include <structmember.h>

typedef struct {
    End end;
    PyObject *ends; /* a list: the worker's end is in it when that has come */
    PyObject *response_type;
    unsigned generation; /* of the process that it is of */
    long asked;          /* number of the request that was sent and whose answer was not heard; 0 for none */
} Asker;

/* What tensors that are lent for one request go by, in order; as in stores/segments.py. */
static const char *const LENT_TAGS[] = {"$0", "$1", "$2",  "$3",  "$4",  "$5",  "$6",  "$7",
                                        "$8", "$9", "$10", "$11", "$12", "$13", "$14", "$15"};
enum { REF_NBYTES = 128 }; /* more than naming one takes, or what else is in a message */
enum { TAG_NBYTES = 4 };   /* most that one takes as a word, with the space before it */

_Static_assert(sizeof LENT_TAGS / sizeof *LENT_TAGS == MOST_TENSORS, "a tag for each");

static int asker_init(Asker *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"out",  "own",    "peer_bell", "own_bell", "slice_s",
                            "pool", "mapped", "held",      "ends",     "response_type", NULL};
    PyObject *parts[END_FIELDS], *ends, *response_type;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOOOOOOO!O", names, parts, parts + 1, parts + 2, parts + 3,
                                     parts + 4, parts + 5, parts + 6, parts + 7, &PyList_Type, &ends,
                                     &response_type) ||
        end_init(&self->end, parts) < 0)
        return -1;
    Py_XSETREF(self->ends, Py_NewRef(ends));
    Py_XSETREF(self->response_type, Py_NewRef(response_type));
    self->generation = fork_generation;
    return 0;
}

static int asker_traverse(Asker *self, visitproc visit, void *arg) {
    Py_VISIT(self->ends);
    Py_VISIT(self->response_type);
    return end_traverse(&self->end, visit, arg);
}

static int asker_clear(Asker *self) {
    Py_CLEAR(self->ends);
    Py_CLEAR(self->response_type);
    return end_clear(&self->end);
}

static int is_open(const Asker *self) {
    if (self->response_type != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "the asker has no end");
    return 0;
}

static int is_over(void *context) { return PyList_GET_SIZE(((Asker *)context)->ends) != 0; }

/* Publish what a request lends, and name it in the message; 0 if that needs more thought, -1 with an exception. */
static int publish_all(End *end, PyObject *tensors, Message *message) {
    Py_ssize_t count = PyTuple_GET_SIZE(tensors);
    for (Py_ssize_t index = 0; index < count; index++) /* all or none: what is copied for nothing is copied again */
        if (!may_publish_again(end->pool, PyTuple_GET_ITEM(tensors, index))) return 0;
    for (Py_ssize_t index = 0; index < count; index++) {
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
    }
    /* A signal handler that came meanwhile may have released some. From here on nobody else runs. */
    if (PyList_GET_SIZE(end->held) != count) return 0;
    for (Py_ssize_t index = 0; index < count; index++) {
        if (!end_refer(message, PyList_GET_ITEM(end->held, index))) return 0;
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

/* The message as protocol.parse_command() splits it; 0 if it is not one word, or one and a text without margins. */
static int split(PyObject *message, Span *command, Span *parameters) {
    Span whole;
    if (!span_of(message, &whole)) return 0;
    const char *space = memchr(whole.text, ' ', (size_t)whole.nbytes);
    *command = (Span){whole.text, space == NULL ? whole.nbytes : space - whole.text};
    *parameters = (Span){command->text + command->nbytes, 0};
    if (command->nbytes == 0 || Py_ISDIGIT(*command->text)) return 0;
    for (Py_ssize_t index = 0; index < command->nbytes; index++)
        if (!Py_ISALNUM(command->text[index]) && command->text[index] != '_') return 0;
    if (space == NULL) return 1;
    *parameters = (Span){space + 1, whole.nbytes - command->nbytes - 1};
    if (parameters->nbytes == 0) return 0;
    unsigned char first = (unsigned char)*parameters->text;
    unsigned char last = (unsigned char)parameters->text[parameters->nbytes - 1];
    return first > ' ' && last > ' ' && first < 0x80 && last < 0x80; /* beyond ASCII there are other spaces */
}

/* Publish the tensors, send the request, and ring: 1 if that is done, 0 if it needs more thought and nothing was sent,
 * -1 with an exception. */
static int send(Asker *self, PyObject *number, PyObject *words, PyObject *tensors) {
    End *end = &self->end;
    Message message;
    Draft draft;
    char text[MESSAGE_NBYTES + MOST_TENSORS * TAG_NBYTES];
    self->asked = 0;
    long seq = PyLong_AsLong(number);
    if (seq == -1 && PyErr_Occurred()) return -1;
    message.count = 0;
    message.remark = NOTHING;
    if (!split(words, &message.command, &message.text) || !PyTuple_CheckExact(tensors) ||
        PyTuple_GET_SIZE(tensors) > MOST_TENSORS || PyList_GET_SIZE(end->held) != 0 ||
        self->generation != fork_generation ||
        message.command.nbytes + message.text.nbytes > MESSAGE_NBYTES - REF_NBYTES * (1 + PyTuple_GET_SIZE(tensors)))
        return 0;
    if (is_over(self)) return 0;
    int is_sent = publish_all(end, tensors, &message);
    if (is_sent > 0) {
        message.timestamp = now_ms();
        is_sent = add_tags(&message, text) && message_write(&draft, &message, 0) &&
                  page_put(end->out, seq, draft.text, draft.nbytes);
    }
    if (is_sent > 0) {
        self->asked = seq;
        ring_bell(end->peer_bell);
        return 1;
    }
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (end_release(end) < 0) PyErr_WriteUnraisable((PyObject *)self);
    PyErr_Restore(type, value, trace);
    return is_sent;
}

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
    return make(self->response_type, fields, sizeof fields / sizeof *fields);
}

/* The answer as Python has it; NULL if it cannot be had that simply, with an exception or not. */
static PyObject *answer_of(const Asker *self, const Message *message) {
    PyObject *arrays = view_all(&self->end, message);
    PyObject *response = arrays == NULL ? NULL : response_of(self, message);
    PyObject *answer = response == NULL ? NULL : PyTuple_Pack(2, response, arrays);
    Py_XDECREF(arrays);
    Py_XDECREF(response);
    if (answer == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) PyErr_Clear(); /* the long way says it */
    return answer;
}

/* Await the answer; None if there is none in time, or if it needs more thought and waits to be taken. */
static PyObject *await_answer(Asker *self, PyObject *number, PyObject *timeout) {
    Message message;
    uint64_t seq = PyLong_AsUnsignedLongLong(number);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    double timeout_s = PyFloat_AsDouble(timeout);
    if (timeout_s == -1.0 && PyErr_Occurred()) return NULL;
    double until_us = now_us() + timeout_s * 1e6;
    PyObject *line = end_await(&self->end, timeout_s, is_over, self, 1, &message);
    while (line != NULL && line != Py_None && message.seq != seq) { /* an answer that nobody waits for */
        Py_DECREF(line);
        line = end_await(&self->end, (until_us - now_us()) / 1e6, is_over, self, 1, &message);
    }
    if (line == NULL || line == Py_None) return line;
    PyObject *answer = answer_of(self, &message);
    Py_DECREF(line);
    if (answer != NULL && end_release(&self->end) == 0) {
        self->asked = 0;
        return answer;
    }
    page_restore(self->end.in);
    Py_XDECREF(answer);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(ask_doc,
             "ask(seq, message, tensors)\n--\n\nPublish the tensors of a tuple, send a request for them, and ring.\n\n"
             "Returns:\n    Whether that is done. If not it needs more thought, and nothing was sent.");

static PyObject *ask(Asker *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_open(self)) return NULL;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "ask takes a number, a message and a tuple");
        return NULL;
    }
    int is_sent = send(self, arguments[0], arguments[1], arguments[2]);
    return is_sent < 0 ? NULL : PyBool_FromLong(is_sent);
}

PyDoc_STRVAR(hear_doc,
             "hear(seq, timeout_s)\n--\n\nAwait the answer to a request, and release what that lent.\n\n"
             "Returns:\n    The response, and a list of views of its tensors. None if there is none in time, or if it needs more\n"
             "    thought: then it waits to be taken. With an exception nothing was taken either.");

static PyObject *hear(Asker *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_open(self)) return NULL;
    if (count == 2) return await_answer(self, arguments[0], arguments[1]);
    PyErr_SetString(PyExc_TypeError, "hear takes a number and a time");
    return NULL;
}

PyDoc_STRVAR(call_doc,
             "call(seq, message, tensors, timeout_s)\n--\n\nAsk, and hear the answer.\n\n"
             "Returns:\n    As hear(); False if nothing was sent. With an exception `asked` tells whether it was.");

static PyObject *call(Asker *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_open(self)) return NULL;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "call takes a number, a message, a tuple and a time");
        return NULL;
    }
    int is_sent = send(self, arguments[0], arguments[1], arguments[2]);
    if (is_sent <= 0) return is_sent < 0 ? NULL : Py_NewRef(Py_False);
    return await_answer(self, arguments[0], arguments[3]);
}

static PyMethodDef asker_methods[] = {
    {"ask", (PyCFunction)(void (*)(void))ask, METH_FASTCALL, ask_doc},
    {"hear", (PyCFunction)(void (*)(void))hear, METH_FASTCALL, hear_doc},
    {"call", (PyCFunction)(void (*)(void))call, METH_FASTCALL, call_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef asker_members[] = {
    {"asked", T_LONG, offsetof(Asker, asked), READONLY, "number of the request that was sent and not answered; 0 for none"},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject AskerType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tr_mmap.native.Asker",
    .tp_doc = "Asker(out, own, peer_bell, own_bell, slice_s, pool, mapped, held, ends, response_type)\n--\n\nThe controller's short cut.",
    .tp_basicsize = sizeof(Asker),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_base = &EndType,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)asker_init,
    .tp_traverse = (traverseproc)asker_traverse,
    .tp_clear = (inquiry)asker_clear,
    .tp_methods = asker_methods,
    .tp_members = asker_members,
};
