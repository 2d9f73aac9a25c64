/* The type ControllerFastPath: a request, and the response to it, in one or two calls. Whatever is new, rare or wrong
 * takes the slow path: then this sends nothing, or leaves the response where it is, and says so. Never ends a
 * worker. */
#include "endpoint.h"
#include "mirror.h"

#include <string.h>

typedef struct {
    Endpoint base;
    PyObject *deaths; /* a list: gets an element when the worker has ended */
    PyObject *response_type;
    PyObject *status_mirror; /* shows the status to people; NULL for none */
    double until_s;      /* when the time of the last call() is over, by the monotonic clock */
    long sent_seq;       /* number of the request that was sent and whose response was not received; 0 for none */
    char is_receiving;   /* a response was taken, and its views are being made */
} ControllerFastPath;

/* The tags of the tensors that one request brings for itself alone, in order; transfer/segments.py writes the same. */
#define ARGUMENT_TAG(number) WIRE_ARGUMENT_TAG_PREFIX #number
static const char *const ARGUMENT_TAGS[] = {
    ARGUMENT_TAG(0),  ARGUMENT_TAG(1),  ARGUMENT_TAG(2),  ARGUMENT_TAG(3),  ARGUMENT_TAG(4),  ARGUMENT_TAG(5),
    ARGUMENT_TAG(6),  ARGUMENT_TAG(7),  ARGUMENT_TAG(8),  ARGUMENT_TAG(9),  ARGUMENT_TAG(10), ARGUMENT_TAG(11),
    ARGUMENT_TAG(12), ARGUMENT_TAG(13), ARGUMENT_TAG(14), ARGUMENT_TAG(15),
};
_Static_assert(sizeof ARGUMENT_TAGS / sizeof *ARGUMENT_TAGS == MAX_CANONICAL_TENSORS, "each tensor needs a tag");

enum {
    TYPICAL_REF_NBYTES = 128, /* for each tensor that a message names, and for all its other members; rarely more */
    TAG_WORD_NBYTES = sizeof " " WIRE_ARGUMENT_TAG_PREFIX "15" - 1, /* most that a tag adds to the parameters */
};

static int fast_path_init(ControllerFastPath *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"out",  "own",    "peer_doorbell", "own_doorbell", "slice_s",
                            "pool", "mapped", "held",          "deaths",       "response_type",
                            "status_mirror", NULL};
    PyObject *parts[ENDPOINT_ARGUMENTS], *deaths, *response_type, *status_mirror = Py_None;
    double slice_s;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOOOOOOO!O|O", names, parts, parts + 1, parts + 2, parts + 3,
                                     parts + 4, parts + 5, parts + 6, parts + 7, &PyList_Type, &deaths,
                                     &response_type, &status_mirror) ||
        endpoint_parse(&self->base, parts, &slice_s) < 0 || endpoint_has_run_init(&self->base))
        return -1;
    if (status_mirror != Py_None && !PyObject_TypeCheck(status_mirror, self->base.state->mirror)) {
        PyErr_SetString(PyExc_TypeError, "status_mirror is a Mirror or None");
        return -1;
    }
    if (status_mirror != Py_None && !mirror_is_initialised(status_mirror)) return -1;
    endpoint_set(&self->base, parts, slice_s);
    self->deaths = Py_NewRef(deaths);
    self->response_type = Py_NewRef(response_type);
    if (status_mirror != Py_None) self->status_mirror = Py_NewRef(status_mirror);
    return 0;
}

static int fast_path_traverse(ControllerFastPath *self, visitproc visit, void *arg) {
    Py_VISIT(self->deaths);
    Py_VISIT(self->response_type);
    return endpoint_traverse(&self->base, visit, arg);
}

static int fast_path_clear(ControllerFastPath *self) {
    Py_CLEAR(self->deaths);
    Py_CLEAR(self->response_type);
    Py_CLEAR(self->status_mirror);
    return endpoint_clear(&self->base);
}

static int is_initialised(const ControllerFastPath *self) {
    if (self->response_type != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ has not run: there is no channel");
    return 0;
}

static int has_worker_ended(void *context) { return PyList_GET_SIZE(((ControllerFastPath *)context)->deaths) != 0; }

/* Publish a request's tensors, and name them in the message; 0 if the slow path is needed, -1 with an exception. */
static int publish_all(Endpoint *endpoint, PyObject *tensors, Message *message) {
    Py_ssize_t count = PyTuple_GET_SIZE(tensors);
    int code = quick_publish_all(endpoint->pool, tensors, endpoint->held);
    if (code <= 0) return code;
    /* A signal handler that ran during a copy may have released some. From here on no other code runs before the
     * send. */
    if (PyList_GET_SIZE(endpoint->held) != count) return 0;
    for (Py_ssize_t index = 0; index < count; index++) {
        if (!message_add_segment(endpoint, message, PyList_GET_ITEM(endpoint->held, index))) return 0;
        message->tensors[index].tag = (Span){ARGUMENT_TAGS[index], (Py_ssize_t)strlen(ARGUMENT_TAGS[index])};
    }
    return 1;
}

/* Append the tags to the parameters, as words; `words` holds the result. 0 if they are too long. */
static int append_tags(Message *message, char *words) {
    Py_ssize_t nbytes = message->text.nbytes;
    if (message->count == 0) return 1;
    if (nbytes > MAX_CANONICAL_NBYTES) return 0;
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

/* Split a text into command and parameters, as parse_command() in protocol/commands.py does. 0 unless the command
 * is a word of ASCII, and the parameters, if there are any, neither begin nor end with a space. */
static int split(PyObject *text, Span *command, Span *parameters) {
    Span whole;
    if (!span_of(text, &whole)) return 0;
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

/* Publish the tensors, send the request, and ring: 1 if that is done; 0 if the slow path is needed, and nothing
 * was sent; -1 with an exception, and nothing was sent. */
static int send_request(ControllerFastPath *self, PyObject *number, PyObject *text, PyObject *tensors) {
    Endpoint *endpoint = &self->base;
    Message message;
    Draft draft;
    char words[MAX_CANONICAL_NBYTES + MAX_CANONICAL_TENSORS * TAG_WORD_NBYTES];
    self->sent_seq = 0;
    long seq = PyLong_AsLong(number);
    if (seq == -1 && PyErr_Occurred()) return -1;
    message.count = 0;
    message.remark = EMPTY_SPAN;
    if (!split(text, &message.command, &message.text) || !PyTuple_CheckExact(tensors) ||
        PyTuple_GET_SIZE(tensors) > MAX_CANONICAL_TENSORS || PyList_GET_SIZE(endpoint->held) != 0 ||
        endpoint_is_foreign(endpoint) ||
        /* Before anything is published. Longer names are rare: message_write() notices them after the copy. */
        message.command.nbytes + message.text.nbytes >
            MAX_CANONICAL_NBYTES - TYPICAL_REF_NBYTES * (1 + PyTuple_GET_SIZE(tensors)))
        return 0;
    if (has_worker_ended(self)) return 0;
    int is_sent = publish_all(endpoint, tensors, &message);
    if (is_sent > 0 && endpoint_is_foreign(endpoint)) is_sent = 0; /* a signal handler has forked during a copy */
    if (is_sent > 0) {
        message.timestamp = now_ms();
        is_sent = append_tags(&message, words) && message_write(&draft, &message, 0) &&
                  ring_store(endpoint->out, seq, draft.text, draft.nbytes) > 0;
    }
    if (is_sent > 0) {
        self->sent_seq = seq;
        semaphore_post(endpoint->peer_doorbell);
        return 1;
    }
    PyObject *error = PyErr_GetRaisedException();
    if (endpoint_release(endpoint) < 0) PyErr_WriteUnraisable((PyObject *)self);
    PyErr_SetRaisedException(error);
    return is_sent;
}

/* Views of all tensors that a message names; NULL if the slow path is needed, with an exception or without. */
static PyObject *view_all(Endpoint *endpoint, const Message *message) {
    PyObject *arrays = PyList_New(message->count);
    for (int index = 0; arrays != NULL && index < message->count; index++) {
        PyObject *name = text_of(endpoint, message->tensors[index].segment);
        PyObject *array = name == NULL ? NULL : endpoint_view(endpoint, name, message->tensors[index].seq);
        Py_XDECREF(name);
        if (array == NULL) Py_CLEAR(arrays);
        else PyList_SET_ITEM(arrays, index, array);
    }
    return arrays;
}

static PyObject *make_response(ControllerFastPath *self, const Message *message) {
    Endpoint *endpoint = &self->base;
    PyObject *fields[] = {PyLong_FromUnsignedLongLong(message->seq), text_of(endpoint, message->command),
                          text_of(endpoint, message->text), text_of(endpoint, message->remark),
                          PyLong_FromUnsignedLongLong(message->timestamp)};
    return construct(self->response_type, fields, sizeof fields / sizeof *fields);
}

/* A response and its views, as Python gets them; NULL if the slow path is needed, with an exception or without. */
static PyObject *make_reply(ControllerFastPath *self, const Message *message) {
    PyObject *arrays = view_all(&self->base, message);
    PyObject *response = arrays == NULL ? NULL : make_response(self, message);
    PyObject *reply = response == NULL ? NULL : PyTuple_Pack(2, response, arrays);
    Py_XDECREF(arrays);
    Py_XDECREF(response);
    if (reply == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) PyErr_Clear(); /* the slow path raises */
    return reply;
}

/* A call that waits for the response to its request. */
typedef struct {
    const ControllerFastPath *path;
    long seq;
} Waiter;

/* Whether to end the wait: the worker has ended, or says that it serves no more (the slow path knows what that means),
 * or a signal handler has used the session and has taken the response for us. */
static int should_stop(void *context) {
    const Waiter *waiter = context;
    const ControllerFastPath *path = waiter->path;
    return PyList_GET_SIZE(path->deaths) != 0 || path->sent_seq != waiter->seq ||
           (path->status_mirror != NULL && mirror_page_says(path->status_mirror, WIRE_STATUS_TERMINATED));
}

/* Wait for the response to a request for `timeout_s`, which is until `until_us`. None if it does not come, or if the
 * slow path is needed: then it waits to be taken. NULL with an exception. */
static PyObject *receive_reply(ControllerFastPath *self, PyObject *number, double timeout_s, double until_us) {
    Message message;
    uint64_t seq = PyLong_AsUnsignedLongLong(number);
    if (seq == UINT64_MAX && PyErr_Occurred()) return NULL;
    if (endpoint_is_foreign(&self->base)) Py_RETURN_NONE; /* the response is the parent's */
    self->sent_seq = (long)seq; /* the slow path may have sent it */
    Waiter waiter = {self, (long)seq};
    PyObject *line = endpoint_receive(&self->base, timeout_s, should_stop, &waiter, 1, &message);
    while (line != NULL && line != Py_None && message.seq != seq) { /* the response to one that was given up */
        Py_DECREF(line);
        line = endpoint_receive(&self->base, (until_us - now_us()) / 1e6, should_stop, &waiter, 1, &message);
    }
    if (line == NULL || line == Py_None) return line;
    if (endpoint_is_foreign(&self->base)) { /* a signal handler has forked meanwhile: the response is the parent's */
        Py_DECREF(line);
        ring_put_back(self->base.own);
        Py_RETURN_NONE;
    }
    self->is_receiving = 1; /* a destructor that the garbage collector runs now may not use the session */
    PyObject *reply = make_reply(self, &message);
    Py_DECREF(line);
    int is_released = reply != NULL && endpoint_release(&self->base) == 0;
    self->is_receiving = 0;
    if (is_released) {
        self->sent_seq = 0;
        return reply;
    }
    ring_put_back(self->base.own);
    Py_XDECREF(reply);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* Write the mirrors now, as a wait would do: the caller may never wait for the response. */
static void show_sent(ControllerFastPath *self) {
    Endpoint *endpoint = &self->base;
    if (self->status_mirror != NULL) mirror_foretell_busy(self->status_mirror);
    ring_show(endpoint->own);
    if (self->status_mirror == NULL || !ring_is_answered(endpoint->out, endpoint->own)) return;
    /* The worker may have written its mirror before ours. If it answers later, it also writes later. */
    mirror_forget(self->status_mirror);
    mirror_update(self->status_mirror);
}

PyDoc_STRVAR(send_doc,
             "send(seq, message, tensors)\n--\n\n"
             "Publish the tensors of a tuple, send a request with them, and ring.\n\n"
             "Returns:\n    Whether that is done. If not, the slow path is needed, and nothing was sent.");

static PyObject *py_send(ControllerFastPath *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_initialised(self)) return NULL;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "send takes a number, a message and a tuple");
        return NULL;
    }
    int is_sent = send_request(self, arguments[0], arguments[1], arguments[2]);
    if (is_sent > 0) show_sent(self);
    return is_sent < 0 ? NULL : PyBool_FromLong(is_sent);
}

PyDoc_STRVAR(receive_doc,
             "receive(seq, timeout_s)\n--\n\nWait for the reply to a request, and release the request's tensors.\n\n"
             "Returns:\n"
             "    The response, and a list of views of its tensors. None if there is none in time, or if the slow\n"
             "    path is needed: then it waits to be taken. With an exception nothing was taken either.");

static PyObject *py_receive(ControllerFastPath *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_initialised(self)) return NULL;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "receive takes a number and a time");
        return NULL;
    }
    double timeout_s;
    if (parse_time(arguments[1], &timeout_s) < 0) return NULL;
    return receive_reply(self, arguments[0], timeout_s, now_us() + timeout_s * 1e6);
}

PyDoc_STRVAR(call_doc,
             "call(seq, message, tensors, timeout_s)\n--\n\nSend a request, and receive the reply.\n\n"
             "Returns:\n"
             "    As receive(); False if nothing was sent. With an exception `sent_seq` tells whether it was.");

static PyObject *py_call(ControllerFastPath *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_initialised(self)) return NULL;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "call takes a number, a message, a tuple and a time");
        return NULL;
    }
    double timeout_s;
    if (parse_time(arguments[3], &timeout_s) < 0) return NULL;
    double until_us = now_us() + timeout_s * 1e6;
    self->until_s = until_us / 1e6;
    int is_sent = send_request(self, arguments[0], arguments[1], arguments[2]);
    if (is_sent <= 0) return is_sent < 0 ? NULL : Py_NewRef(Py_False);
    if (self->status_mirror != NULL) mirror_forget(self->status_mirror); /* the worker may have written it meanwhile */
    return receive_reply(self, arguments[0], timeout_s, until_us);
}

static PyMethodDef fast_path_methods[] = {
    {"send", (PyCFunction)(void (*)(void))py_send, METH_FASTCALL, send_doc},
    {"receive", (PyCFunction)(void (*)(void))py_receive, METH_FASTCALL, receive_doc},
    {"call", (PyCFunction)(void (*)(void))py_call, METH_FASTCALL, call_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef fast_path_members[] = {
    {"sent_seq", T_LONG, offsetof(ControllerFastPath, sent_seq), 0,
     "number of the request that was sent and whose reply was not received; 0 for none"},
    {"until_s", T_DOUBLE, offsetof(ControllerFastPath, until_s), READONLY,
     "when the time of the last call() is over, by the monotonic clock"},
    {"is_receiving", T_BOOL, offsetof(ControllerFastPath, is_receiving), READONLY,
     "whether a reply was taken, and its views are being made"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot controller_fast_path_slots[] = {
    {Py_tp_doc, "ControllerFastPath(out, own, peer_doorbell, own_doorbell, slice_s, pool, mapped, held, deaths, "
                "response_type)\n--\n\nThe controller's fast path."},
    {Py_tp_new, stateful_new},
    {Py_tp_init, fast_path_init},
    {Py_tp_traverse, fast_path_traverse},
    {Py_tp_clear, fast_path_clear},
    {Py_tp_dealloc, endpoint_dealloc},
    {Py_tp_methods, fast_path_methods},
    {Py_tp_members, fast_path_members},
    {0, NULL},
};

PyType_Spec controller_fast_path_spec = {
    .name = "tr_mmap.native.ControllerFastPath",
    .basicsize = sizeof(ControllerFastPath),
    .flags = TYPE_FLAGS | Py_TPFLAGS_HAVE_GC,
    .slots = controller_fast_path_slots,
};
