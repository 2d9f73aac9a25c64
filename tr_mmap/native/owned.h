/* A segment as its owner sees it. */
#ifndef TR_MMAP_OWNED_H
#define TR_MMAP_OWNED_H

#include "arrays.h"
#include "line.h"

typedef struct {
    Line line; /* over the whole file, mapped for writing */
    Layout layout;
    PyObject *name;     /* of its file */
    PyObject *laid_out; /* what Python calls that layout; NULL where there is none */
    PyObject *asked;    /* what the lender called the type of that layout; NULL where nobody asked for it */
    PyObject *lent;     /* the same, while it is lent out; else NULL */
    PyObject *shelf;    /* where it goes when nobody here holds it: a list, or nowhere */
    PyObject *mark;     /* of its pool */
    uint64_t seq;
    Py_ssize_t holds, last_take;
    char is_sent;    /* the loan that it is was published */
    char is_current; /* its header says what is laid out, and that is all it needs to say */
} Owned;

/* Undo one hold; -1 with an exception. */
int owned_release(Owned *self);

/* An array over the segment, of the layout that was laid out; it holds the segment. */
PyObject *owned_lend(Owned *self);

/* Whether an array is what owned_lend() handed out, or just like it. */
int owned_is_whole(const Owned *self, PyObject *array);

/* The segment whose loan an array lies in; NULL if it lies in none. */
Owned *owner_of(PyObject *array);

/* Make an array of a loan, what it is a view of, and what was handed out read-only; whether there are other views. */
int seal_loan(PyObject *array);

#endif
