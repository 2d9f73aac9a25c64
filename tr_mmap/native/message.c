/* The canonical form of control messages. Pure but for the clock: bytes in, spans out, and back. */
#include "message.h"

#include <string.h>
#include <time.h>

/* Whether a byte stands for itself in a JSON text: all but the controls, the quote and the backslash. A table, because
 * the texts of a message are most of its bytes. */
static const char is_unescaped[256] = {['\x20' ... '"' - 1] = 1, ['"' + 1 ... '\\' - 1] = 1, ['\\' + 1 ... 255] = 1};

/* What follows the backslash for a byte, as msgspec writes it; 0 for none. And the byte for what follows it. */
static const char escape_of[256] = {['"'] = '"',  ['\\'] = '\\', ['\b'] = 'b', ['\f'] = 'f',
                                    ['\n'] = 'n', ['\r'] = 'r',  ['\t'] = 't'};
static const char byte_of[256] = {['"'] = '"',  ['\\'] = '\\', ['b'] = '\b', ['f'] = '\f',
                                  ['n'] = '\n', ['r'] = '\r',  ['t'] = '\t'};

int span_of(PyObject *text, Span *span) {
    if (!PyUnicode_CheckExact(text)) return 0;
    span->text = PyUnicode_AsUTF8AndSize(text, &span->nbytes);
    if (span->text == NULL) { /* a lone surrogate */
        PyErr_Clear();
        return 0;
    }
    span->form = AS_IT_IS;
    for (const char *at = span->text, *end = at + span->nbytes; at < end; at++)
        if (!is_unescaped[(unsigned char)*at]) {
            if (escape_of[(unsigned char)*at] == 0) return 0;
            span->form = TO_ESCAPE;
        }
    return 1;
}

PyObject *unescaped(Span span) {
    char *bytes = PyMem_Malloc((size_t)span.nbytes);
    if (bytes == NULL) return PyErr_NoMemory();
    char *to = bytes;
    for (const char *at = span.text, *end = at + span.nbytes; at < end; at++)
        *to++ = *at == '\\' ? byte_of[(unsigned char)*++at] : *at; /* read_text() has seen that one follows */
    PyObject *text = PyUnicode_DecodeUTF8(bytes, to - bytes, NULL);
    PyMem_Free(bytes);
    return text;
}

/* The clock of timestamps, which people read: some milliseconds behind the other, in a third of the time. */
#ifdef CLOCK_REALTIME_COARSE
static const clockid_t TIMESTAMP_CLOCK = CLOCK_REALTIME_COARSE;
#else
static const clockid_t TIMESTAMP_CLOCK = CLOCK_REALTIME;
#endif

uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(TIMESTAMP_CLOCK, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* -- writing. A draft that is full stays full: its nbytes are then MAX_CANONICAL_NBYTES + 1. ---------------------- */

static void add(Draft *draft, const char *text, Py_ssize_t nbytes) {
    if (nbytes > MAX_CANONICAL_NBYTES - draft->nbytes) {
        draft->nbytes = MAX_CANONICAL_NBYTES + 1;
        return;
    }
    memcpy(draft->text + draft->nbytes, text, (size_t)nbytes);
    draft->nbytes += nbytes;
}

#define ADD(draft, literal) add(draft, literal, (Py_ssize_t)sizeof(literal) - 1)

static void add_escaped(Draft *draft, Span text) {
    const char *at = text.text, *end = at + text.nbytes;
    while (at < end) {
        const char *first = at;
        while (at < end && is_unescaped[(unsigned char)*at]) at++;
        add(draft, first, at - first);
        if (at < end) add(draft, (char[]){'\\', escape_of[(unsigned char)*at++]}, 2);
    }
}

static void add_text(Draft *draft, Span text) {
    ADD(draft, "\"");
    if (text.form == TO_ESCAPE) add_escaped(draft, text);
    else add(draft, text.text, text.nbytes);
    ADD(draft, "\"");
}

static void add_number(Draft *draft, uint64_t number) {
    static const char pairs[] =
        "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
        "5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899"; /* two digits at a time */
    char digits[20]; /* of 2**64 - 1 */
    int first = sizeof digits;
    for (; number >= 100; number /= 100) memcpy(digits + (first -= 2), pairs + number % 100 * 2, 2);
    if (number >= 10) memcpy(digits + (first -= 2), pairs + number * 2, 2);
    else digits[--first] = (char)('0' + number);
    add(draft, digits + first, (Py_ssize_t)sizeof digits - first);
}

static void add_member(Draft *draft, const char *name, Span text) {
    if (text.nbytes == 0) return; /* protocol/messages.py leaves out what is at its default */
    add(draft, name, (Py_ssize_t)strlen(name));
    add_text(draft, text);
}

#define IS_NAMED ",\"form\":\"" WIRE_FORM_NAMED "\""

int message_write(Draft *draft, const Message *message, int is_response) {
    draft->nbytes = 0;
    add_member(draft, ",\"command\":", message->command);
    add_member(draft, is_response ? ",\"result\":" : ",\"parameters\":", message->text);
    add_member(draft, ",\"message\":", message->remark);
    ADD(draft, ",\"timestamp\":");
    add_number(draft, message->timestamp);
    for (int index = 0; index < message->count; index++) {
        const Ref *ref = &message->tensors[index];
        if (index == 0) ADD(draft, ",\"tensors\":[[");
        else ADD(draft, "],[");
        add_text(draft, ref->tag);
        ADD(draft, ",");
        add_text(draft, ref->segment);
        ADD(draft, ",");
        add_number(draft, ref->seq);
    }
    if (message->count != 0) ADD(draft, "]]");
    for (int index = 0; index < message->dropped; index++) {
        if (index == 0) ADD(draft, ",\"drops\":[");
        else ADD(draft, ",");
        add_text(draft, message->drops[index]);
    }
    if (message->dropped != 0) ADD(draft, "]");
    if (message->is_named) ADD(draft, IS_NAMED);
    ADD(draft, "}");
    return draft->nbytes <= MAX_CANONICAL_NBYTES;
}

/* -- reading ------------------------------------------------------------------------------------------------------ */

typedef struct {
    const char *at, *end;
} Cursor;

static int skip(Cursor *cursor, const char *expected, size_t nbytes) {
    if ((size_t)(cursor->end - cursor->at) < nbytes || memcmp(cursor->at, expected, nbytes) != 0) return 0;
    cursor->at += nbytes;
    return 1;
}

#define SKIP(cursor, literal) skip(cursor, literal, sizeof(literal) - 1)

static int read_text(Cursor *cursor, Span *text) {
    const char *at = cursor->at, *end = cursor->end;
    if (at == end || *at++ != '"') return 0;
    text->text = at;
    text->form = AS_IT_IS;
    for (;; at += 2) {
        while (at < end && is_unescaped[(unsigned char)*at]) at++;
        if (at == end) return 0;
        if (*at == '"') break;
        if (*at != '\\' || at + 1 == end || byte_of[(unsigned char)at[1]] == 0) return 0;
        text->form = ESCAPED;
    }
    text->nbytes = at - text->text;
    cursor->at = at + 1;
    return 1;
}

static int read_number(Cursor *cursor, uint64_t *number) {
    enum { MAX_DIGITS = 18 }; /* they cannot overflow; a longer number takes the slow path */
    const char *first = cursor->at, *at = first;
    const char *end = cursor->end - first > MAX_DIGITS ? first + MAX_DIGITS : cursor->end;
    uint64_t value = 0;
    for (unsigned digit; at < end && (digit = (unsigned char)*at - (unsigned)'0') <= 9; at++) value = value * 10 + digit;
    *number = value;
    cursor->at = at;
    return at > first && (*first != '0' || at - first == 1);
}

static int read_tensors(Cursor *cursor, Message *message) {
    if (!SKIP(cursor, "[")) return 0;
    do {
        if (message->count == MAX_CANONICAL_TENSORS) return 0;
        Ref *ref = &message->tensors[message->count++];
        if (!SKIP(cursor, "[") || !read_text(cursor, &ref->tag) || !SKIP(cursor, ",") ||
            !read_text(cursor, &ref->segment) || !SKIP(cursor, ",") || !read_number(cursor, &ref->seq) ||
            !SKIP(cursor, "]"))
            return 0;
    } while (SKIP(cursor, ","));
    return SKIP(cursor, "]");
}

static int read_drops(Cursor *cursor, Message *message) {
    if (!SKIP(cursor, "[")) return 0;
    do {
        if (message->dropped == MAX_CANONICAL_TENSORS || !read_text(cursor, &message->drops[message->dropped++])) return 0;
    } while (SKIP(cursor, ","));
    return SKIP(cursor, "]");
}

int message_read(const char *line, Py_ssize_t nbytes, int is_response, Message *message) {
    Cursor cursor = {line, line + nbytes};
    message->seq = message->timestamp = 0;
    message->command = message->text = message->remark = EMPTY_SPAN;
    message->count = message->dropped = message->is_named = 0;
    if (!SKIP(&cursor, "{\"seq\":")) return 0;
    while (cursor.at < cursor.end && *cursor.at == ' ') cursor.at++;
    if (!read_number(&cursor, &message->seq)) return 0;
    if (SKIP(&cursor, ",\"command\":") && !read_text(&cursor, &message->command)) return 0;
    if (is_response ? SKIP(&cursor, ",\"result\":") : SKIP(&cursor, ",\"parameters\":"))
        if (!read_text(&cursor, &message->text)) return 0;
    if (is_response && SKIP(&cursor, ",\"message\":") && !read_text(&cursor, &message->remark)) return 0;
    if (SKIP(&cursor, ",\"timestamp\":") && !read_number(&cursor, &message->timestamp)) return 0;
    if (SKIP(&cursor, ",\"tensors\":") && !read_tensors(&cursor, message)) return 0;
    if (!is_response && SKIP(&cursor, ",\"drops\":") && !read_drops(&cursor, message)) return 0;
    message->is_named = SKIP(&cursor, IS_NAMED);
    return SKIP(&cursor, "}") && cursor.at == cursor.end;
}

const char has_as_many_colons_doc[] =
    "has_as_many_colons(line, values)\n--\n\nWhether a line of bytes has as many colons as a tuple has true values.";

PyObject *py_has_as_many_colons(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyBytes_Check(arguments[0]) || !PyTuple_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "has_as_many_colons takes bytes and a tuple");
        return NULL;
    }
    Py_ssize_t surplus = 0;
    const char *text = PyBytes_AS_STRING(arguments[0]);
    for (Py_ssize_t index = 0; index < PyBytes_GET_SIZE(arguments[0]); index++) surplus += text[index] == ':';
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(arguments[1]); index++) {
        int is_true = PyObject_IsTrue(PyTuple_GET_ITEM(arguments[1], index));
        if (is_true < 0) return NULL;
        surplus -= is_true;
    }
    return PyBool_FromLong(surplus == 0);
}
