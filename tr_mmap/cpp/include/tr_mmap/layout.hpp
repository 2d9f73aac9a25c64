// How large segments are, where they lie in their files, and how owner and reader load and store the words of a
// segment's header. wire.hpp has the offset of each word.
//
// The live line of a segment's header (bytes 64 to 127) coordinates owner and reader without a system call. Each word
// is stored and loaded whole, in this order:
//
// - The owner fills the payload, then stores seq with *release*; the reader loads seq with *acquire*. A reader that
//   loads the new number therefore sees the payload that belongs to it.
// - Each side stores first and loads afterwards: the owner stores seq = 0, then loads lease and guest; the reader
//   stores its lease, then loads seq. Acquire and release do not order a store before a later load of another word, so
//   each side has a *full fence* between the two. At least one of them then sees what the other stored.
//
// On x86 acquire and release cost nothing and the fence is one locked instruction (20 ns). On Arm they are ldar, stlr
// and dmb ish, and they are needed there: without them a reader may see a number before its payload. A Python peer does
// the same in its compiled part. Without that part, Python relies on the locked instructions of its interpreter, and on
// the doorbell: a semaphore orders all stores before a ring.
//
// C++17 has no std::atomic_ref, and a std::atomic cannot be placed in a file. So these are compiler builtins, the same
// in g++ and clang++.
#ifndef TR_MMAP_LAYOUT_HPP
#define TR_MMAP_LAYOUT_HPP

#include "macros_off.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

#include "wire.hpp"

namespace tr {
namespace detail {

/// Payload capacity of the smallest size class that holds ``nbytes``; powers of two are classes.
inline std::uint64_t class_nbytes(std::uint64_t nbytes) {
    if (nbytes <= wire::min_class_nbytes) return wire::min_class_nbytes;
    const int bits = 64 - __builtin_clzll(nbytes - 1);
    std::uint64_t step = std::uint64_t{1} << (bits - 1 - wire::steps_per_octave_log2);
    if (step < wire::min_class_nbytes) step = wire::min_class_nbytes;
    return (nbytes + step - 1) / step * step;
}

/// Where a segment lies: in a file of its own (slots is 0), or in a slot of a slab, a file of many.
struct Place {
    std::string file;
    std::uint64_t slot = 0;
    std::uint64_t slots = 0;

    std::uint64_t heads_nbytes() const { return wire::head_nbytes * (slots ? slots : 1); }
    std::uint64_t min_file_nbytes() const {
        return slots ? slots * (wire::head_nbytes + wire::slot_nbytes) : wire::head_nbytes;
    }
};

/// The place of the segment that a message names: slot 3 of the 16 in result_7.tsr is result_7.3of16.tsr.
inline Place place_of(const std::string& name) {
    const Place own{name, 0, 0};
    const std::string suffix(wire::tensor_suffix), mark(wire::slot_mark), slots_mark(wire::slots_mark);
    if (name.size() <= suffix.size() || name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0) return own;
    const std::string stem = name.substr(0, name.size() - suffix.size());
    const std::size_t first = stem.rfind(mark);
    const std::size_t second = first == std::string::npos ? first : stem.find(slots_mark, first);
    if (first == 0 || second == std::string::npos) return own;
    const auto number_of = [](const std::string& text) {  // past every limit if it is no number of ours
        constexpr std::uint64_t none = UINT64_MAX;
        if (text.empty() || text.size() > 4 || (text[0] == '0' && text.size() > 1)) return none;
        std::uint64_t number = 0;
        for (const char each : text) {
            if (each < '0' || each > '9') return none;
            number = number * 10 + static_cast<std::uint64_t>(each - '0');
        }
        return number;
    };
    const std::uint64_t slot = number_of(stem.substr(first + mark.size(), second - first - mark.size()));
    const std::uint64_t slots = number_of(stem.substr(second + slots_mark.size()));
    if (slot >= slots || slots > wire::max_slots) return own;
    return {stem.substr(0, first) + suffix, slot, slots};
}

inline std::uint64_t* words_of(std::byte* head) { return reinterpret_cast<std::uint64_t*>(head); }
inline const std::uint64_t* words_of(const std::byte* head) { return reinterpret_cast<const std::uint64_t*>(head); }

/// Load with acquire: this side also sees all that the peer stored before it stored this value.
inline std::uint64_t load_word(const std::uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
/// Store with release: a side that loads this value also sees all that was stored before it.
inline void store_word(std::uint64_t* word, std::uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
#if defined(__SANITIZE_THREAD__) && __GNUC__ >= 11 && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan"  // it does not know fences; ours order accesses of two processes
#endif
/// No later load comes before an earlier store.
inline void full_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#if defined(__SANITIZE_THREAD__) && __GNUC__ >= 11 && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_LAYOUT_HPP
