// A mapped ring of messages: one side appends them, the other takes them in that order. Never knows what a message
// means. The Python side is tr_mmap/native/reference/ring.py; tr_mmap/channel/mapped.py describes the bytes.
#ifndef TR_MMAP_RING_HPP
#define TR_MMAP_RING_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "errors.hpp"
#include "layout.hpp"
#include "system.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

inline std::uint64_t word_of_digits(const char* digits) {
    std::uint64_t word;
    static_assert(sizeof word == wire::number_digits);
    std::memcpy(&word, digits, sizeof word);
    return word;
}

/// A message's number as its slot holds it: 8 ASCII characters, spaces first, as one word.
inline std::uint64_t word_of_number(std::uint32_t seq) {
    char digits[wire::number_digits];
    std::fill(std::begin(digits), std::end(digits), ' ');
    for (int place = wire::number_digits - 1; place >= 0 && seq != 0; --place, seq /= 10) {
        digits[place] = static_cast<char>('0' + seq % 10);
    }
    return word_of_digits(digits);
}

/// One thread stores at a time, and one looks and takes. Others may compare the newest messages meanwhile.
class Ring {
public:
    explicit Ring(const Fd& fd) : mapping_(map_write(fd, wire::ring_nbytes)) {
        for (std::atomic<std::uint64_t>& each : seen_) each = blank;
    }

    /// The bytes of a ring without a message.
    static std::string empty() {
        std::string slot = wire::empty_slot;
        slot.resize(wire::ring_slot_nbytes, ' ');
        std::string all(wire::ring_words_nbytes, '\0');
        for (int index = 0; index < wire::ring_slots; ++index) all += slot;
        return all;
    }

    /// Whether a slot holds so many bytes after the number, and the newline.
    static bool is_room_for(std::size_t nbytes) { return nbytes < wire::ring_slot_nbytes - wire::message_rest_offset; }

    /// Append a message: store a blank number, the text, the number. A reader that sees one number before and after its
    /// copy has a whole message.
    ///
    /// @param rest the members after the number, which fit into a slot.
    void store(std::uint32_t seq, const std::string& rest) {
        std::byte* const slot = slot_of(stored_);
        store_word(number_in(slot), blank);
        full_fence();  // no byte of the text before the blank
        std::memcpy(slot + wire::message_rest_offset, rest.data(), rest.size());
        slot[wire::message_rest_offset + rest.size()] = std::byte{'\n'};
        store_word(number_in(slot), word_of_number(seq));
        ++stored_;
        stored_number_ = word_of_number(seq);
        latest_ = slot;
    }

    /// Whether peek() has something to give.
    bool has_message() const {
        const std::uint64_t word = number_at(taken_);
        return word != 0 && (rejected_.empty() || line_in(slot_of(taken_)) != rejected_);
    }

    /// The next message's line; nothing if there is none, or it is being stored. The same until advance().
    ///
    /// @throws BadMessage it has no end.
    std::optional<std::string> peek() const {
        const std::uint64_t word = number_at(taken_);
        if (word == 0) return {};
        std::byte* const slot = slot_of(taken_);
        std::string line = line_in(slot);
        full_fence();  // the copy before the second load of the number
        if (load_word(number_in(slot)) != word) return {};  // somebody else has stored a message there meanwhile
        if (!rejected_.empty() && line == rejected_) return {};
        if (line.size() == wire::ring_slot_nbytes) {
            throw BadMessage("the worker's message has no end; it does not speak this protocol", "newline");
        }
        return line;
    }

    /// The number of the message that peek() has given, as its slot has it.
    std::uint64_t next_number() const { return load_word(number_in(slot_of(taken_))); }

    /// Take the message that peek() has given.
    void advance() {
        const std::uint64_t position = taken_;
        std::byte* const slot = slot_of(position);
        seen_[position % wire::ring_slots] = load_word(number_in(slot));
        taken_ = position + 1;
        latest_ = slot;
        rejected_.clear();
    }

    /// Ignore a line that peek() has given, because the peer has not signed it. The peer's own line can still come.
    void reject(std::string line) { rejected_ = std::move(line); }

    /// Tell the peer that this side is done with all messages that it has taken.
    void all_done() { store_word(words_of(mapping_.data() + wire::ring_done_offset), taken_); }

    /// How many messages the peer is done with.
    std::uint64_t done_by_peer() const { return load_word(words_of(mapping_.data() + wire::ring_done_offset)); }

    /// Say that nobody wants the answer to the message of a position, which this side has stored. One thread at a time.
    ///
    /// @returns whether the peer had not begun with it, and now will not.
    bool cancel(std::uint64_t position) {
        std::byte* const words = mapping_.data() + wire::ring_cancel_offset;
        std::uint64_t* const word = words_of(words) + position % wire::ring_slots;
        // A later message may have come round to the slot of one that the peer is not done with, and may be cancelled.
        if (load_word(word) > position + 1) return false;
        store_word(word, position + 1);
        full_fence();  // the word before the look: the peer counts a message first, and then looks at its word
        return done_by_peer() <= position;
    }

    /// Whether the newest message here has the number of the last one that was stored in another ring: the worker has
    /// answered the last request.
    bool has_answer_to(const Ring& requests) const {
        const std::uint64_t number = requests.stored_number_;
        return number == 0 || newest_number() == number;
    }

    /// The slot of the last message that was stored or taken; the first one before.
    const std::byte* latest() const noexcept { return latest_; }

private:
    static inline const std::uint64_t blank = word_of_digits(wire::blank_number);

    static std::size_t line_nbytes(const std::byte* slot) noexcept {
        const void* const end = std::memchr(slot, '\n', wire::ring_slot_nbytes);
        return end ? static_cast<std::size_t>(static_cast<const std::byte*>(end) - slot) : wire::ring_slot_nbytes;
    }

    static std::string line_in(const std::byte* slot) {
        return std::string(reinterpret_cast<const char*>(slot), line_nbytes(slot));
    }

    static std::uint64_t* number_in(std::byte* slot) { return words_of(slot + wire::message_number_offset); }

    std::byte* slot_of(std::uint64_t position) const {
        return mapping_.data() + wire::ring_words_nbytes + position % wire::ring_slots * wire::ring_slot_nbytes;
    }

    /// The number of a message that was not taken; 0 if there is none, or it is being stored.
    std::uint64_t number_at(std::uint64_t position) const {
        const std::uint64_t word = load_word(number_in(slot_of(position)));
        return word == seen_[position % wire::ring_slots] || word == blank ? 0 : word;
    }

    std::uint64_t newest_number() const {
        const std::uint64_t first = taken_;
        std::uint64_t number = load_word(number_in(latest_));
        for (std::uint64_t position = first; position < first + wire::ring_slots; ++position) {
            const std::uint64_t next = number_at(position);
            if (next == 0) break;
            number = next;
        }
        return number;
    }

    Mapping mapping_;
    std::uint64_t stored_ = 0;
    std::atomic<std::uint64_t> stored_number_{0};  // of the last message that was stored, as its slot has it
    std::atomic<std::uint64_t> taken_{0};
    std::atomic<std::uint64_t> seen_[wire::ring_slots];  // the number of the last message that was taken from each slot
    std::atomic<std::byte*> latest_{slot_of(0)};
    std::string rejected_;  // a line in the next slot that the peer has not signed
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_RING_HPP
