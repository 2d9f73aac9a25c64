/* The canonical form of control messages. Pure but for the clock: bytes in, spans out, and back. */
#include "message.h"

#include <string.h>
#include <time.h>

/* Whether a byte stands for itself in a JSON text. */
static int is_unescaped(unsigned char byte) { return byte >= 0x20 && byte != '"' && byte != '\\'; }

int span_of(PyObject *text, Span *span) {
    if (!PyUnicode_CheckExact(text)) return 0;
    span->text = PyUnicode_AsUTF8AndSize(text, &span->nbytes);
    if (span->text == NULL) { /* a lone surrogate */
        PyErr_Clear();
        return 0;
    }
    for (Py_ssize_t index = 0; index < span->nbytes; index++)
        if (!is_unescaped((unsigned char)span->text[index])) return 0;
    return 1;
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

static void add_text(Draft *draft, Span text) {
    ADD(draft, "\"");
    add(draft, text.text, text.nbytes);
    ADD(draft, "\"");
}

static void add_number(Draft *draft, uint64_t number) {
    char digits[20]; /* of 2**64 - 1 */
    int first = sizeof digits;
    do digits[--first] = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    add(draft, digits + first, (Py_ssize_t)sizeof digits - first);
}

static void add_member(Draft *draft, const char *name, Span text) {
    if (text.nbytes == 0) return; /* protocol/messages.py leaves out what is at its default */
    add(draft, name, (Py_ssize_t)strlen(name));
    add_text(draft, text);
}

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
    if (!SKIP(cursor, "\"")) return 0;
    text->text = cursor->at;
    while (cursor->at < cursor->end && is_unescaped((unsigned char)*cursor->at)) cursor->at++;
    text->nbytes = cursor->at - text->text;
    return SKIP(cursor, "\"");
}

static int read_number(Cursor *cursor, uint64_t *number) {
    enum { MAX_DIGITS = 18 }; /* they cannot overflow; a longer number takes the slow path */
    const char *first = cursor->at;
    uint64_t value = 0;
    while (cursor->at < cursor->end && *cursor->at >= '0' && *cursor->at <= '9' && cursor->at - first < MAX_DIGITS)
        value = value * 10 + (uint64_t)(*cursor->at++ - '0');
    *number = value;
    return cursor->at > first && (*first != '0' || cursor->at - first == 1);
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

int message_read(const char *line, Py_ssize_t nbytes, int is_response, Message *message) {
    Cursor cursor = {line, line + nbytes};
    message->seq = message->timestamp = 0;
    message->command = message->text = message->remark = EMPTY_SPAN;
    message->count = 0;
    if (!SKIP(&cursor, "{\"seq\":")) return 0;
    while (SKIP(&cursor, " ")) continue;
    if (!read_number(&cursor, &message->seq)) return 0;
    if (SKIP(&cursor, ",\"command\":") && !read_text(&cursor, &message->command)) return 0;
    if (is_response ? SKIP(&cursor, ",\"result\":") : SKIP(&cursor, ",\"parameters\":"))
        if (!read_text(&cursor, &message->text)) return 0;
    if (is_response && SKIP(&cursor, ",\"message\":") && !read_text(&cursor, &message->remark)) return 0;
    if (SKIP(&cursor, ",\"timestamp\":") && !read_number(&cursor, &message->timestamp)) return 0;
    if (SKIP(&cursor, ",\"tensors\":") && !read_tensors(&cursor, message)) return 0;
    return SKIP(&cursor, "}") && cursor.at == cursor.end;
}
