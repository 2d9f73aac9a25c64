/* The usual form of messages. Pure but for the clock: bytes in, spans out, and back. */
#include "message.h"

#include <string.h>
#include <time.h>

static int is_plain(unsigned char letter) { return letter >= 0x20 && letter != '"' && letter != '\\'; }

int span_of(PyObject *text, Span *span) {
    if (!PyUnicode_CheckExact(text)) return 0;
    span->text = PyUnicode_AsUTF8AndSize(text, &span->nbytes);
    if (span->text == NULL) { /* a lone surrogate */
        PyErr_Clear();
        return 0;
    }
    for (Py_ssize_t index = 0; index < span->nbytes; index++)
        if (!is_plain((unsigned char)span->text[index])) return 0;
    return 1;
}

uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* -- writing. A draft that is full stays full: its nbytes are then MESSAGE_NBYTES + 1. --------------------------- */

static void add(Draft *draft, const char *text, Py_ssize_t nbytes) {
    if (nbytes > MESSAGE_NBYTES - draft->nbytes) {
        draft->nbytes = MESSAGE_NBYTES + 1;
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
    char digits[20];
    int first = sizeof digits;
    do digits[--first] = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    add(draft, digits + first, (Py_ssize_t)sizeof digits - first);
}

static void add_member(Draft *draft, const char *name, Span text) {
    if (text.nbytes == 0) return; /* as in protocol.py, what is at its default is left out */
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
    return draft->nbytes <= MESSAGE_NBYTES;
}

/* -- reading ------------------------------------------------------------------------------------------------------ */

typedef struct {
    const char *at, *end;
} Reader;

static int skip(Reader *reader, const char *wanted, size_t nbytes) {
    if ((size_t)(reader->end - reader->at) < nbytes || memcmp(reader->at, wanted, nbytes) != 0) return 0;
    reader->at += nbytes;
    return 1;
}

#define SKIP(reader, literal) skip(reader, literal, sizeof(literal) - 1)

static int read_text(Reader *reader, Span *text) {
    if (!SKIP(reader, "\"")) return 0;
    text->text = reader->at;
    while (reader->at < reader->end && is_plain((unsigned char)*reader->at)) reader->at++;
    text->nbytes = reader->at - text->text;
    return SKIP(reader, "\"");
}

static int read_number(Reader *reader, uint64_t *number) {
    const char *first = reader->at;
    uint64_t value = 0;
    while (reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9' && reader->at - first < 18)
        value = value * 10 + (uint64_t)(*reader->at++ - '0');
    *number = value;
    return reader->at > first && (*first != '0' || reader->at - first == 1);
}

static int read_tensors(Reader *reader, Message *message) {
    if (!SKIP(reader, "[")) return 0;
    do {
        if (message->count == MOST_TENSORS) return 0;
        Ref *ref = &message->tensors[message->count++];
        if (!SKIP(reader, "[") || !read_text(reader, &ref->tag) || !SKIP(reader, ",") ||
            !read_text(reader, &ref->segment) || !SKIP(reader, ",") || !read_number(reader, &ref->seq) ||
            !SKIP(reader, "]"))
            return 0;
    } while (SKIP(reader, ","));
    return SKIP(reader, "]");
}

int message_read(const char *line, Py_ssize_t nbytes, int is_response, Message *message) {
    Reader reader = {line, line + nbytes};
    message->seq = message->timestamp = 0;
    message->command = message->text = message->remark = NOTHING;
    message->count = 0;
    if (!SKIP(&reader, "{\"seq\":")) return 0;
    while (SKIP(&reader, " ")) continue;
    if (!read_number(&reader, &message->seq)) return 0;
    if (SKIP(&reader, ",\"command\":") && !read_text(&reader, &message->command)) return 0;
    if (is_response ? SKIP(&reader, ",\"result\":") : SKIP(&reader, ",\"parameters\":"))
        if (!read_text(&reader, &message->text)) return 0;
    if (is_response && SKIP(&reader, ",\"message\":") && !read_text(&reader, &message->remark)) return 0;
    if (SKIP(&reader, ",\"timestamp\":") && !read_number(&reader, &message->timestamp)) return 0;
    if (SKIP(&reader, ",\"tensors\":") && !read_tensors(&reader, message)) return 0;
    return SKIP(&reader, "}") && reader.at == reader.end;
}
