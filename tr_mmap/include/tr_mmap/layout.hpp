// Where things are in a segment, how large segments are, and the loads and stores that two processes meet in.
//
// The live line of a segment's header (bytes 64 to 127) coordinates owner and reader without a system call. Each word
// is stored and loaded whole, and ordered so:
//
// - The owner fills the payload, then stores seq with *release*; the reader loads seq with *acquire*: who sees the new
//   number sees the payload behind it.
// - Each side stores first and looks afterwards: the owner seq = 0, then lease and guest; the reader lease, then seq.
//   No acquire or release orders a store before a later load of another word, so there is a *full fence* between the
//   two, on both sides: at least one of them sees the other.
//
// On x86 acquire and release cost nothing and the fence is one locked instruction (20 ns). On Arm they are ldar, stlr
// and dmb ish, and they are needed there: without them a reader may see a number before its payload. A Python peer does
// the same in its compiled part. Where that could not be built it has no such instructions of its own, and relies on
// the locked ones of its interpreter, and on the doorbell, a semaphore, which orders all that was stored before a ring.
//
// C++17 has no std::atomic_ref, and a std::atomic cannot be made to lie in a file; so these are compiler builtins, the
// same in g++ and clang++.
#ifndef TR_MMAP_LAYOUT_HPP
#define TR_MMAP_LAYOUT_HPP

#include <cstddef>
#include <cstdint>

namespace tr {
namespace detail {

// The payload begins on the second memory page, so that the reader can map the header for writing (its lease) and the
// payload for reading only.
inline constexpr std::size_t head_nbytes = 4096;
inline constexpr std::size_t payload_offset = head_nbytes;

// Indices of 8-byte words from the start of the header.
inline constexpr std::size_t seq_word = 8;
inline constexpr std::size_t layout_word = 9;
inline constexpr std::size_t lease_word = 10;
inline constexpr std::size_t guest_word = 11;
inline constexpr std::size_t seq_copy_word = 15;

inline constexpr std::uint64_t lease_free = 0;
inline constexpr std::uint64_t lease_held = 1;
inline constexpr std::uint64_t lease_pinned = 2;  // the reader forked while it held a view: its child may look for ever

inline constexpr std::size_t min_class_nbytes = 4096;  // a memory page
inline constexpr int steps_per_octave_log2 = 3;  // 8 sizes between powers of two: at most 12.5 % of a segment is unused

/// Payload capacity of the smallest size class that holds ``nbytes``; powers of two are classes.
inline std::uint64_t class_nbytes(std::uint64_t nbytes) {
    if (nbytes <= min_class_nbytes) return min_class_nbytes;
    const int bits = 64 - __builtin_clzll(nbytes - 1);
    std::uint64_t step = std::uint64_t{1} << (bits - 1 - steps_per_octave_log2);
    if (step < min_class_nbytes) step = min_class_nbytes;
    return (nbytes + step - 1) / step * step;
}

inline std::uint64_t* words_of(std::byte* head) { return reinterpret_cast<std::uint64_t*>(head); }

/// Load; what the peer stored before it stored this is seen too.
inline std::uint64_t load_word(const std::uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
/// Store; whoever sees this sees what was stored before it.
inline void store_word(std::uint64_t* word, std::uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
/// What was stored before is seen by all before anything is loaded after.
inline void full_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // namespace detail
}  // namespace tr

#endif  // TR_MMAP_LAYOUT_HPP
