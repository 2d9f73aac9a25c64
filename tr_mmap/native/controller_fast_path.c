/* The type ControllerFastPath: a request, and the answer to it, in one call. Whatever is new, rare or wrong is left to
 * Python (controller/flow.py): then it sends nothing, or leaves the next answer where it is, and says so. Never ends a
 * worker. */
#include "endpoint.h"
#include "mirror.h"
#include "traffic.h"

#include <string.h>

typedef struct {
    Endpoint base;
    PyObject *deaths; /* a list: gets an element when the worker has ended */
    PyObject *response_type;       /* NULL until __init__ has run */
    PyObject *pack;                /* a function: the text for a dict of arguments by name, and the list of its tensors */
    PyObject *status_mirror;       /* shows the status to people */
    PyObject *sending, *consuming; /* TurnWords: one thread at a time sends, and one consumes answers */
    PyObject *in_flight;           /* a dict: the requests whose answers were not consumed, by number */
    PyObject *unannounced;         /* a dict: tags that the next request must announce, with 0 if they are gone */
    PyObject *tagged;              /* a dict: the segments that carry tags */
    PyObject *left;                /* a list: segments that tags have left, which answers to come release */
    PyObject *aside;               /* a dict: answers that Python has taken, and whose tensors it could not map yet */
    Counters *counters;
    PyObject *links; /* a dict: the names by which the worker knows segments of other pools; NULL for none */
    uint64_t sent_before; /* how many requests the session had sent before the ring was made */
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
    static char *names[] = {"out",       "own",       "peer_doorbell", "own_doorbell",  "slice_s",       "pool",
                            "mapped",    "held",      "is_private",    "deaths",        "response_type", "pack", "status_mirror", "sending",
                            "consuming", "in_flight", "unannounced",   "tagged", "left",          "aside",         "counters",
                            "links",     NULL};
    const ModuleState *state = self->base.state;
    PyObject *parts[ENDPOINT_ARGUMENTS], *deaths, *response_type, *pack, *mirror, *sending, *consuming, *in_flight;
    PyObject *unannounced, *tagged, *left, *aside, *counters, *links = NULL;
    double slice_s;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOOOOOOOO!OOO!O!O!O!O!O!O!O!O!|O!", names, parts, parts + 1, parts + 2,
                                     parts + 3, parts + 4, parts + 5, parts + 6, parts + 7, parts + 8, &PyList_Type, &deaths,
                                     &response_type, &pack, state->mirror, &mirror, state->turn, &sending, state->turn,
                                     &consuming, &PyDict_Type, &in_flight, &PyDict_Type, &unannounced, &PyDict_Type, &tagged, &PyList_Type,
                                     &left, &PyDict_Type, &aside, state->counters, &counters, &PyDict_Type,
                                     &links) ||
        !mirror_is_initialised(mirror) || endpoint_parse(&self->base, parts, &slice_s) < 0 ||
        endpoint_has_run_init(&self->base))
        return -1;
    endpoint_set(&self->base, parts, slice_s);
    self->deaths = Py_NewRef(deaths);
    self->pack = Py_NewRef(pack);
    self->status_mirror = Py_NewRef(mirror);
    self->sending = Py_NewRef(sending);
    self->consuming = Py_NewRef(consuming);
    self->in_flight = Py_NewRef(in_flight);
    self->unannounced = Py_NewRef(unannounced);
    self->tagged = Py_NewRef(tagged);
    self->left = Py_NewRef(left);
    self->aside = Py_NewRef(aside);
    self->counters = (Counters *)Py_NewRef(counters);
    self->links = Py_XNewRef(links);
    self->sent_before = self->counters->sent - ring_stored(self->base.out);
    self->response_type = Py_NewRef(response_type);
    return 0;
}

static int fast_path_traverse(ControllerFastPath *self, visitproc visit, void *arg) {
    Py_VISIT(self->deaths);
    Py_VISIT(self->response_type);
    Py_VISIT(self->pack);
    Py_VISIT(self->status_mirror);
    Py_VISIT(self->sending);
    Py_VISIT(self->consuming);
    Py_VISIT(self->in_flight);
    Py_VISIT(self->unannounced);
    Py_VISIT(self->tagged);
    Py_VISIT(self->left);
    Py_VISIT(self->aside);
    Py_VISIT(self->links);
    return endpoint_traverse(&self->base, visit, arg);
}

static int fast_path_clear(ControllerFastPath *self) {
    Py_CLEAR(self->response_type); /* first, so that whatever runs from here on finds it closed */
    Py_CLEAR(self->deaths);
    Py_CLEAR(self->pack);
    Py_CLEAR(self->status_mirror);
    Py_CLEAR(self->sending);
    Py_CLEAR(self->consuming);
    Py_CLEAR(self->in_flight);
    Py_CLEAR(self->unannounced);
    Py_CLEAR(self->tagged);
    Py_CLEAR(self->left);
    Py_CLEAR(self->aside);
    Py_CLEAR(self->links);
    Py_CLEAR(self->counters);
    return endpoint_clear(&self->base);
}

static int is_initialised(const ControllerFastPath *self) {
    if (self->response_type != NULL) return 1;
    PyErr_SetString(PyExc_ValueError, "__init__ has not run: there is no channel");
    return 0;
}

/* Name what a request holds in the message; 0 if the slow path is needed. The names are good until other code runs. */
static int name_held(const ControllerFastPath *self, PyObject *held, Py_ssize_t count, Message *message) {
    const Endpoint *endpoint = &self->base;
    if ((held == NULL ? 0 : PyList_GET_SIZE(held)) != count) return 0; /* a signal handler has released some */
    for (Py_ssize_t index = 0; index < count; index++) {
        PyObject *segment = PyList_GET_ITEM(held, index);
        if (!message_add_segment(endpoint, message, segment) && !message_add_view(endpoint, message, segment, self->links))
            return 0;
        message->tensors[index].tag = (Span){ARGUMENT_TAGS[index], (Py_ssize_t)strlen(ARGUMENT_TAGS[index]), AS_IT_IS};
    }
    return 1;
}

/* Announce the tags that are new, and those that are gone; 0 if the slow path is needed. */
static int announce(const ControllerFastPath *self, Message *message) {
    PyObject *tag, *seq;
    Span name;
    for (Py_ssize_t at = 0; PyDict_Next(self->unannounced, &at, &tag, &seq);) {
        if (!span_of(tag, &name) || !PyLong_CheckExact(seq)) return 0;
        PyObject *segment = PyDict_GetItemWithError(self->tagged, tag);
        int is_gone = PyObject_Not(seq); /* 0, or the segment's number when the tag was sent */
        if (is_gone != (segment == NULL)) return 0; /* another thread is about to change it */
        if (is_gone) {
            if (message->dropped == MAX_CANONICAL_TENSORS) return 0;
            message->drops[message->dropped++] = name;
        } else {
            if (!message_add_segment(&self->base, message, segment)) return 0;
            message->tensors[message->count - 1].tag = name;
        }
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
    *command = (Span){whole.text, space == NULL ? whole.nbytes : space - whole.text, AS_IT_IS};
    *parameters = EMPTY_SPAN;
    if (command->nbytes == 0 || Py_ISDIGIT(*command->text)) return 0;
    for (Py_ssize_t index = 0; index < command->nbytes; index++)
        if (!Py_ISALNUM(command->text[index]) && command->text[index] != '_') return 0;
    if (space == NULL) return 1;
    *parameters = (Span){space + 1, whole.nbytes - command->nbytes - 1, whole.form};
    if (parameters->nbytes == 0) return 0;
    unsigned char first = (unsigned char)*parameters->text;
    unsigned char last = (unsigned char)parameters->text[parameters->nbytes - 1];
    return first > ' ' && last > ' ' && first < 0x80 && last < 0x80; /* beyond ASCII there are other spaces */
}

/* -- sending ------------------------------------------------------------------------------------------------------ */

/* Whether a request may be sent here and now, with nothing that Python would have to do before. */
static int may_send(const ControllerFastPath *self) {
    const Endpoint *endpoint = &self->base;
    return turn_is_free(self->sending) && self->counters->blocked == 0 && !self->counters->is_watched &&
           PyDict_GET_SIZE(self->in_flight) < self->counters->limit &&
           !endpoint_is_foreign(endpoint) && PyList_GET_SIZE(self->deaths) == 0;
}

/* Release what a request names; -1 with an exception. */
static int release_held(ControllerFastPath *self, Pending *pending) {
    PyObject *held = pending->held;
    if (held == NULL) return 0;
    pending->held = NULL;
    int code = 0;
    for (Py_ssize_t index = 0; PyList_Check(held) && index < PyList_GET_SIZE(held); index++) {
        PyObject *segment = PyList_GET_ITEM(held, index);
        if (PyObject_TypeCheck(segment, self->base.state->owner_segment) &&
            owner_segment_release((OwnerSegment *)segment) < 0)
            code = -1;
    }
    Py_DECREF(held);
    return code;
}

/* Undo what publish_all() and move_held() have done; an exception stays set. */
static void give_up_held(ControllerFastPath *self, Pending *pending) {
    PyObject *error = PyErr_GetRaisedException();
    if (release_held(self, pending) < 0 || endpoint_release(&self->base) < 0) PyErr_WriteUnraisable((PyObject *)self);
    PyErr_SetRaisedException(error);
}

/* Let a request have the segments that are held for it; -1 with an exception. */
static int move_held(ControllerFastPath *self, Pending *pending) {
    PyObject *held = self->base.held;
    Py_ssize_t count = PyList_GET_SIZE(held);
    if (count == 0) return 0;
    PyObject *moved = PyList_GetSlice(held, 0, count);
    if (moved == NULL || PyList_SetSlice(held, 0, count, NULL) < 0) {
        Py_XDECREF(moved);
        return -1;
    }
    Py_XSETREF(pending->held, moved);
    return 0;
}

/* send_request() for a tuple of arrays; `named` is the text that names them as values, or NULL. */
static int send_arrays(ControllerFastPath *self, Pending *pending, PyObject *named, PyObject *arrays, int is_quiet) {
    Endpoint *endpoint = &self->base;
    PyObject *text = pending->message;
    Py_ssize_t count = PyTuple_GET_SIZE(arrays);
    Message message;
    Draft draft;
    char words[MAX_CANONICAL_NBYTES + MAX_CANONICAL_TENSORS * TAG_WORD_NBYTES];
    message.count = message.dropped = 0;
    message.is_named = named != NULL;
    message.remark = EMPTY_SPAN;
    message.timestamp = now_ms();
    if (!may_send(self) || !split(text, &message.command, &message.text) || (named != NULL && !span_of(named, &message.text)) ||
        count > MAX_CANONICAL_TENSORS || PyList_GET_SIZE(endpoint->held) != 0 ||
        /* Before anything is published. Longer names are rare: message_write() notices them after the copy. */
        message.command.nbytes + message.text.nbytes >
            MAX_CANONICAL_NBYTES - TYPICAL_REF_NBYTES * (1 + count + PyDict_GET_SIZE(self->unannounced)))
        return 0;
    int is_ready = quick_publish_all(endpoint->pool, arrays, endpoint->held, self->links);
    if (is_ready > 0) is_ready = move_held(self, pending) == 0; /* makes a list, so the garbage collector may run */
    /* Other threads, signal handlers and destructors, which may have sent requests, ran until here. No other code runs
     * from here on: nothing that is made below is of the collector's. */
    if (is_ready > 0)
        is_ready = may_send(self) && name_held(self, pending->held, count, &message) &&
                   (named != NULL || append_tags(&message, words)) && announce(self, &message) &&
                   message_write(&draft, &message, 0);
    Counters *counters = self->counters;
    long seq = counters->seq % WIRE_MAX_MESSAGE_SEQ + 1;
    PyObject *number = is_ready > 0 ? PyLong_FromLong(seq) : NULL;
    int is_known = number == NULL ? -1 : PyDict_Contains(self->in_flight, number);
    int is_sent = is_known == 0 && PyDict_SetItem(self->in_flight, number, (PyObject *)pending) == 0;
    if (is_sent && ring_store(endpoint->out, seq, draft.text, draft.nbytes) <= 0) {
        is_sent = 0;
        PyDict_DelItem(self->in_flight, number);
    }
    Py_XDECREF(number);
    if (!is_sent) {
        give_up_held(self, pending);
        return PyErr_Occurred() ? -1 : 0;
    }
    pending->seq = counters->seq = seq;
    pending->is_sent = 1;
    pending->order = self->sent_before + ring_stored(endpoint->out) - 1;
    counters->sent = pending->order + 1;
    if (PyDict_GET_SIZE(self->unannounced) != 0) PyDict_Clear(self->unannounced); /* of texts and numbers: runs no code */
    if (!is_quiet) semaphore_post(endpoint->peer_doorbell);
    mirror_forget(self->status_mirror); /* the worker may have written it meanwhile */
    return 1;
}

/* The text for arguments by name, and a tuple of the tensors among them; -1 with an exception. */
static int pack(const ControllerFastPath *self, PyObject *values, PyObject **text, PyObject **tensors) {
    PyObject *packed = PyObject_CallOneArg(self->pack, values), *list;
    if (packed != NULL && !PyTuple_Check(packed)) PyErr_SetString(PyExc_TypeError, "pack returns a text and a list");
    int is_packed = packed != NULL && PyTuple_Check(packed) && PyArg_ParseTuple(packed, "UO!", text, &PyList_Type, &list) &&
                    (*tensors = PyList_AsTuple(list)) != NULL;
    *text = is_packed ? Py_NewRef(*text) : NULL;
    Py_XDECREF(packed);
    return is_packed ? 0 : -1;
}

/* Publish a request's tensors, send it, and ring, unless the caller does so later: 1 if that is done; 0 if Python has to
 * send it, -1 with an exception; then nothing was sent. */
static int send_request(ControllerFastPath *self, Pending *pending, PyObject *tensors, int is_quiet) {
    if (!PyTuple_CheckExact(tensors)) return 0;
    PyObject *named = NULL;
    Span command, words;
    if (PyTuple_GET_SIZE(tensors) == 1 && PyDict_CheckExact(PyTuple_GET_ITEM(tensors, 0))) {
        /* words beside values by name are an error, which the slow path raises */
        if (!may_send(self) || !split(pending->message, &command, &words) || words.nbytes != 0) return 0;
        if (pack(self, PyTuple_GET_ITEM(tensors, 0), &named, &tensors) < 0) return -1;
    } else Py_INCREF(tensors);
    PyObject *arrays = arrays_to_publish(self->base.pool, tensors); /* first: other threads may send meanwhile */
    int is_sent = arrays != NULL ? send_arrays(self, pending, named, arrays, is_quiet) : PyErr_Occurred() ? -1 : 0;
    Py_XDECREF(arrays);
    Py_XDECREF(named);
    Py_DECREF(tensors);
    return is_sent;
}

/* -- consuming ---------------------------------------------------------------------------------------------------- */

/* All tensors that a message names; NULL if the slow path is needed, with an exception or without. */
static PyObject *receive_all(Endpoint *endpoint, const Message *message, Framework framework) {
    PyObject *arrays = PyList_New(message->count);
    for (int index = 0; arrays != NULL && index < message->count; index++) {
        PyObject *name = text_of(endpoint, message->tensors[index].segment);
        PyObject *array = name == NULL ? NULL : endpoint_receive(endpoint, name, message->tensors[index].seq, framework);
        Py_XDECREF(name);
        if (array == NULL) Py_CLEAR(arrays);
        else PyList_SET_ITEM(arrays, index, array);
    }
    return arrays;
}

static PyObject *make_response(ControllerFastPath *self, const Message *message) {
    Endpoint *endpoint = &self->base;
    PyObject *fields[8] = {PyLong_FromUnsignedLongLong(message->seq), text_of(endpoint, message->command),
                           text_of(endpoint, message->text), text_of(endpoint, message->remark),
                           PyLong_FromUnsignedLongLong(message->timestamp)};
    size_t count = 5;
    if (message->is_named) { /* it has no refs and no error, and a form */
        fields[count++] = PyList_New(0);
        fields[count++] = Py_NewRef(Py_None);
        fields[count++] = Py_NewRef(endpoint->state->names[NAMED]);
    }
    return construct(self->response_type, fields, count);
}

/* A response and its tensors, as Python gets them; NULL if the slow path is needed, with an exception or without. */
static PyObject *make_reply(ControllerFastPath *self, const Message *message, Framework framework) {
    PyObject *arrays = receive_all(&self->base, message, framework);
    PyObject *response = arrays == NULL ? NULL : make_response(self, message);
    PyObject *reply = response == NULL ? NULL : PyTuple_Pack(2, response, arrays);
    Py_XDECREF(arrays);
    Py_XDECREF(response);
    if (reply == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) PyErr_Clear(); /* the slow path raises */
    return reply;
}

/* Call what is to be called when there is an outcome; -1 with an exception. */
static int tell_done(Pending *pending) {
    PyObject *on_done = pending->on_done;
    if (on_done == NULL || on_done == Py_None) return 0;
    pending->on_done = NULL;
    PyObject *returned = PyObject_CallOneArg(on_done, (PyObject *)pending);
    Py_DECREF(on_done);
    Py_XDECREF(returned);
    return returned == NULL ? -1 : 0;
}

enum { LEFT_TO_PYTHON, NOTHING_THERE, CONSUMED };

/* Deal with the next answer, and take it; -1 with an exception. */
static int consume_next(ControllerFastPath *self) {
    Endpoint *endpoint = &self->base;
    Message message;
    RingLine next;
    int is_there = ring_next(endpoint->own, &next);
    if (is_there <= 0) return is_there < 0 ? -1 : NOTHING_THERE;
    int outcome = LEFT_TO_PYTHON;
    PyObject *number = NULL, *reply = NULL;
    Pending *pending = NULL;
    /* Neither the end of what tags have left nor that of what was put aside is for the worker to know from here. */
    if (PyList_GET_SIZE(self->left) == 0 && PyDict_GET_SIZE(self->aside) == 0 && next.is_terminated &&
        message_read(PyBytes_AS_STRING(next.line), PyBytes_GET_SIZE(next.line), 1, &message) &&
        (number = PyLong_FromUnsignedLongLong(message.seq)) != NULL) {
        PyObject *found = PyDict_GetItemWithError(self->in_flight, number);
        if (found != NULL && Py_IS_TYPE(found, endpoint->state->pending)) pending = (Pending *)Py_NewRef(found);
    }
    int is_quick = pending != NULL && !pending->is_abandoned && pending->outcome == NULL;
    if (is_quick) {
        if (pending->framework == NULL) message.count = 0;
        reply = make_reply(self, &message, framework_of(endpoint->state, pending->framework)); /* other code may run now, and consume this answer, or put one aside */
        if (PyDict_GET_SIZE(self->aside) != 0) Py_CLEAR(reply);
    }
    if (reply != NULL) {
        if (pending->outcome == NULL) pending->outcome = Py_NewRef(reply);
        outcome = CONSUMED;
        PyObject *known = PyDict_GetItemWithError(self->in_flight, number);
        if (known == (PyObject *)pending && PyDict_DelItem(self->in_flight, number) < 0) outcome = -1;
        ring_advance(endpoint->own, &next);
        if (release_held(self, pending) < 0 || tell_done(pending) < 0) outcome = -1;
    }
    Py_XDECREF(reply);
    Py_XDECREF(number);
    Py_XDECREF(pending);
    Py_DECREF(next.line);
    return PyErr_Occurred() ? -1 : outcome;
}

/* A call that waits for the answer to its request. */
typedef struct {
    const ControllerFastPath *path;
    const Pending *pending;
} Waiter;

/* Whether to end the wait: the worker has ended, or says that it serves no more (Python knows what that means), or a
 * signal handler has used the session and has consumed the answer. */
static int should_stop(void *context) {
    const Waiter *waiter = context;
    const ControllerFastPath *path = waiter->path;
    return PyList_GET_SIZE(path->deaths) != 0 || waiter->pending->outcome != NULL ||
           mirror_page_says(path->status_mirror, WIRE_STATUS_TERMINATED);
}

/* Consume answers until that to a request is there: 1 if it is; 0 if the time is over, or the rest is left to Python; -1
 * with an exception. */
static int consume_until(ControllerFastPath *self, Pending *pending, double until_us) {
    Endpoint *endpoint = &self->base;
    Waiter waiter = {self, pending};
    while (pending->outcome == NULL) {
        int code = endpoint_is_foreign(endpoint) ? LEFT_TO_PYTHON : consume_next(self);
        if (code == CONSUMED) {
            if (pending->outcome == NULL && turn_wake(self->consuming) < 0) return -1; /* the answer is another thread's */
            continue;
        }
        if (code != NOTHING_THERE) return code;
        double left_s = (until_us - now_us()) / 1e6;
        if (left_s <= 0 || should_stop(&waiter)) return pending->outcome != NULL;
        if (ring_sleep(endpoint->own, endpoint->own_doorbell, left_s, endpoint->slice_s, should_stop, &waiter) < 0)
            return -1;
    }
    return 1;
}

PyDoc_STRVAR(call_doc,
             "call(message, tensors, timeout_s, framework)\n--\n\n"
             "Publish the tensors of a tuple, send a request with them, and consume answers until its own is there.\n\n"
             "Returns:\n"
             "    The result. None if Python has to do it, and nothing was sent. The request itself, a Pending, if it was\n"
             "    sent and the rest is left to Python. After an exception it is abandoned, if it was sent.");

static PyObject *py_call(ControllerFastPath *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_initialised(self)) return NULL;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "call takes a message, a tuple, a time and a framework");
        return NULL;
    }
    double timeout_s;
    if (parse_time(arguments[2], &timeout_s) < 0) return NULL;
    double until_us = now_us() + timeout_s * 1e6;
    if (!turn_is_free(self->consuming)) Py_RETURN_NONE;
    Pending *pending = pending_new(self->base.state, arguments[0], arguments[3] == Py_None ? NULL : arguments[3]);
    if (pending == NULL) return NULL;
    pending->deadline_s = until_us / 1e6;
    int is_sent = send_request(self, pending, arguments[1], 0);
    if (is_sent <= 0 || !turn_is_free(self->consuming)) {
        if (is_sent > 0) return (PyObject *)pending;
        Py_DECREF(pending);
        return is_sent < 0 ? NULL : Py_NewRef(Py_None);
    }
    TurnWords *consuming = (TurnWords *)Py_NewRef(self->consuming);
    unsigned long me = PyThread_get_thread_ident();
    consuming->owner = me;
    int code = consume_until(self, pending, until_us);
    if (consuming->owner == me) consuming->owner = 0;
    PyObject *result = NULL;
    if (code < 0) {
        pending->is_abandoned = 1;
        PyObject *error = PyErr_GetRaisedException();
        if (turn_wake((PyObject *)consuming) < 0) PyErr_WriteUnraisable((PyObject *)self);
        PyErr_SetRaisedException(error);
    } else if (turn_wake((PyObject *)consuming) == 0) {
        int has_result = code > 0 && PyTuple_CheckExact(pending->outcome); /* else an error, which Python raises */
        result = Py_NewRef(has_result ? pending->outcome : (PyObject *)pending);
    }
    Py_DECREF(consuming);
    Py_DECREF(pending);
    return result;
}

PyDoc_STRVAR(send_doc,
             "send(pending, tensors, is_quiet=False)\n--\n\nPublish the tensors of a tuple, and send a request with them. The\n"
             "caller rings later if it is to be quiet.\n\n"
             "Returns:\n    Whether that is done. If not, Python has to do it, and nothing was sent.");

static PyObject *py_send(ControllerFastPath *self, PyObject *const *arguments, Py_ssize_t count) {
    if (!is_initialised(self)) return NULL;
    Pending *pending = count == 2 || count == 3 ? (Pending *)arguments[0] : NULL;
    if (pending == NULL || !Py_IS_TYPE(pending, self->base.state->pending) || pending->message == NULL) {
        PyErr_SetString(PyExc_TypeError, "send takes a Pending, with a message, a tuple, and a bool");
        return NULL;
    }
    int is_sent = send_request(self, pending, arguments[1], count == 3 && arguments[2] == Py_True);
    return is_sent < 0 ? NULL : PyBool_FromLong(is_sent);
}

PyDoc_STRVAR(consume_doc,
             "consume()\n--\n\nConsume the answers that are there. The caller has the turn.\n\n"
             "Returns:\n    Whether the next one is left to Python.");

static PyObject *py_consume(ControllerFastPath *self, PyObject *unused) {
    (void)unused;
    if (!is_initialised(self)) return NULL;
    int code, count = 0;
    while ((code = endpoint_is_foreign(&self->base) ? LEFT_TO_PYTHON : consume_next(self)) == CONSUMED) count++;
    if (code < 0 || (count != 0 && turn_wake(self->consuming) < 0)) return NULL;
    return PyBool_FromLong(code == LEFT_TO_PYTHON);
}

static PyMethodDef fast_path_methods[] = {
    {"send", (PyCFunction)(void (*)(void))py_send, METH_FASTCALL, send_doc},
    {"consume", (PyCFunction)py_consume, METH_NOARGS, consume_doc},
    {"call", (PyCFunction)(void (*)(void))py_call, METH_FASTCALL, call_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot controller_fast_path_slots[] = {
    {Py_tp_doc, "ControllerFastPath(out, own, peer_doorbell, own_doorbell, slice_s, pool, mapped, held, is_private, deaths, "
                "response_type,\npack, status_mirror, sending, consuming, in_flight, unannounced, tagged, left, aside, counters, links=None)\n--\n\nThe "
                "controller's fast path."},
    {Py_tp_new, stateful_new},
    {Py_tp_init, fast_path_init},
    {Py_tp_traverse, fast_path_traverse},
    {Py_tp_clear, fast_path_clear},
    {Py_tp_dealloc, endpoint_dealloc},
    {Py_tp_methods, fast_path_methods},
    {0, NULL},
};

PyType_Spec controller_fast_path_spec = {
    .name = "tr_mmap.native.ControllerFastPath",
    .basicsize = sizeof(ControllerFastPath),
    .flags = TYPE_FLAGS | Py_TPFLAGS_HAVE_GC,
    .slots = controller_fast_path_slots,
};
