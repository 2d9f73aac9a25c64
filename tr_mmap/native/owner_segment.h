/* A segment as its owner sees it: the type OwnerSegment, for the free lists and the fast paths. Writes no header
 * and copies no tensor. */
#ifndef TR_MMAP_OWNER_SEGMENT_H
#define TR_MMAP_OWNER_SEGMENT_H

#include "arrays.h"
#include "lease_words.h"
#include "twin.h"

typedef struct {
    LeaseWords base; /* over the whole file, mapped for writing */
    ArrayLayout array_layout;
    PyObject *name;            /* of its file */
    PyObject *layout;          /* the same layout as Python's pool describes it; NULL for none */
    PyObject *requested_dtype; /* the dtype as the borrower wrote it; NULL where the layout was not made for a loan */
    PyObject *loaned_layout;   /* the layout that was loaned; NULL while the segment is not on loan */
    PyObject *free_list;       /* the list that it joins when the last hold is released; NULL or None for none */
    PyObject *pool_token;      /* tells the segments of its pool from those of others */
    PyObject *twin;            /* of the mapping of its payload; NULL or None for none */
    uint64_t seq;              /* the number that it was last published under */
    size_t holds;              /* how many tags, messages and loans need its content. Python may set any count: as an
                                  unsigned one it wraps around */
    size_t last_take;          /* when it was last taken from its free list, by its pool's count */
    char is_published;         /* the loan was published, so this process may no longer write to it */
    char is_torch_loan;        /* the loan is a torch tensor, which cannot be made read-only */
    char is_private;           /* the place of its payload is the borrower's own; the file is mapped elsewhere, or not */
    char is_slot;              /* its file is not its own, so no tag may name it */
    char is_header_current;    /* the header describes the layout, so the next tensor of it needs only a stamp */
} OwnerSegment;

/* Undo one hold; with the last one gone, append the segment to its free list. -1 with an exception, and then the
 * hold stays. */
int owner_segment_release(OwnerSegment *self);

/* An array over the segment, of the layout that was set; the array is one hold. NULL with an exception. */
PyObject *owner_segment_loan(OwnerSegment *self);

/* Make the borrower's memory its own, under all views of it, by the twin; 0 if there is none, or it cannot come, or if
 * the memory is its own already, which the borrower may have changed since. */
int owner_segment_make_private(OwnerSegment *self);

/* Undo that; there must be no array over the payload any more. 0 if that cannot be, or something else has made it private. */
int owner_segment_make_shared(OwnerSegment *self);

/* Whether an array covers the same memory in the same layout as what owner_segment_loan() handed out. */
int owner_segment_is_whole(const OwnerSegment *self, PyObject *array);

/* The segment whose loan an array lies in, borrowed; NULL if it lies in none. */
OwnerSegment *find_loan_owner(const ModuleState *state, PyObject *array);

/* Make these read-only: an array of a loan, the arrays that it is a view of, and the array that was handed out. Returns
 * whether there may be other views of the loan, which can still be written to. */
int freeze_loan(const ModuleState *state, PyObject *array);

#endif
