// The owner's side of segments: a pool of them that are filled, published and filled again. Not safe for threads by
// itself; its session holds a lock. The protocol is specified in tr_mmap/shm/__init__.py; layout.hpp explains the order
// of its loads and stores.
#ifndef TR_MMAP_POOL_HPP
#define TR_MMAP_POOL_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "crc32.hpp"
#include "header_write.hpp"
#include "layout.hpp"
#include "segment.hpp"
#include "system.hpp"
#include "tensor.hpp"
#include "wire.hpp"

namespace tr {

/// What a session holds in shared memory on this side.
struct PoolStats {
    std::size_t segments = 0;         // files there are
    std::uint64_t nbytes = 0;         // their payload capacity together
    std::uint64_t free_nbytes = 0;    // of those that this side does not need (the worker may have views of some)
    std::uint64_t published = 0;      // tensors published since the start
    std::uint64_t copied_nbytes = 0;  // bytes copied into segments since the start; a loan adds none
    std::uint64_t created = 0;        // segments made since the start; all other publishes used one again
    std::size_t in_flight = 0;        // requests that were sent and whose answers were not taken from the worker
    std::uint64_t rejected = 0;       // messages since the start that the worker had not signed, if there is has_auth
};

namespace detail {

inline constexpr int madv_remove = 9;           // linux/mman.h: give the pages back to the file system now
inline constexpr int madv_populate_write = 23;  // 5.14; fails harmlessly before

/// Makes, fills and recycles the segments of one side of a session.
class SegmentPool {
public:
    using SegmentPtr = std::shared_ptr<PoolSegment>;

    /// @param budget_nbytes most payload capacity to hold at once; nothing for no limit but the file system's.
    /// @param block_ms at the budget, how long to wait for the reader to release views before throwing OutOfSpace.
    /// @param has_checksum whether to store each payload's CRC-32.
    /// @param is_reader_gone returns whether the reader has ended, so that it will not release anything any more.
    /// @param pause called between two looks while the pool waits at the budget; other threads may use the pool then.
    SegmentPool(std::string directory, std::optional<std::uint64_t> budget_nbytes, double block_ms, bool has_checksum,
                std::function<bool()> is_reader_gone, std::function<void()> pause)
        : directory_(std::move(directory)),
          budget_nbytes_(budget_nbytes),
          block_ms_(block_ms),
          has_checksum_(has_checksum),
          is_reader_gone_(std::move(is_reader_gone)),
          pause_(std::move(pause)) {}

    /// The latest moment until which the next publish() or empty() may wait at the budget.
    void set_latest(Clock::time_point latest) noexcept { latest_ = latest; }

    /// Put a tensor into a segment and stamp it; the caller holds the segment once, until release(). A loan is
    /// published in place; anything else costs one copy.
    ///
    /// @throws OutOfSpace no room.
    SegmentPtr publish(const Tensor& tensor) {
        collect();
        if (SegmentPtr segment = publish_loan(tensor)) return segment;
        const std::size_t nbytes = tensor.nbytes();
        const void* source = tensor.data_ptr();
        auto [segment, is_filled] = take(nbytes, source);
        try {
            if (!is_filled && nbytes) std::memcpy(segment->mapping.data() + wire::payload_offset, source, nbytes);
            stamp(*segment, tensor.dtype(), tensor.shape());
        } catch (...) {
            make_free(segment);
            throw;
        }
        copied_nbytes_ += nbytes;
        segment->holds += 1;
        return segment;
    }

    /// A loan: a tensor of undefined content that lives in a segment.
    Tensor empty(const Shape& shape, DType dtype) {
        collect();
        const std::size_t nbytes = nbytes_of(shape, dtype);
        if (nbytes == 0) return Tensor(shape, dtype, nullptr);
        const SegmentPtr segment = take(nbytes, nullptr).first;
        std::shared_ptr<LoanStorage> storage;
        try {
            storage = std::make_shared<LoanStorage>(segment, returned_);
        } catch (...) {
            make_free(segment);
            throw;
        }
        segment->holds += 1;  // until the last tensor of the loan is gone
        segment->is_loaned = true;
        return Tensor(shape, dtype, std::move(storage));
    }

    /// Release one hold. When the last one is gone, the segment may be filled again as soon as its lease is free.
    void release(const SegmentPtr& segment) {
        if (--segment->holds == 0) make_free(segment);
    }

    /// The reader has died. A forked child of it may still have views, so segments that it held are never filled again.
    void reader_died() {
        for (const auto& each : segments_) {
            const std::uint64_t lease = load_word(each.second->words() + wire::lease_word);
            if (lease != wire::lease_free) each.second->is_tainted = true;
        }
        look_at_all();
        for (auto& each : free_) {
            retire_if(each.second, [](const PoolSegment& segment) { return segment.is_tainted; });
        }
        for (auto& each : awaiting_) {
            std::deque<SegmentPtr> kept;
            for (const SegmentPtr& segment : each.second) {
                if (segment->is_tainted) retire(segment);
                else kept.push_back(segment);
            }
            each.second = std::move(kept);
        }
    }

    PoolStats stats() {
        collect();
        PoolStats result;
        result.segments = segments_.size();
        result.nbytes = nbytes_;
        for (const auto& each : free_) result.free_nbytes += each.first * each.second.size();
        for (const auto& each : awaiting_) result.free_nbytes += each.first * each.second.size();
        result.published = published_;
        result.copied_nbytes = copied_nbytes_;
        result.created = created_;
        return result;
    }

    /// Remove the files; tensors that still live keep their memory until they are gone.
    void close() noexcept {
        if (directory_.is_there()) {  // else another session may have files of these names
            for (const auto& each : segments_) unlink_file(each.second->path);
        }
        segments_.clear();
        free_.clear();
        awaiting_.clear();
    }

    /// Give up the memory that is kept for later tensors, because the worker needs room.
    void release_free() {
        collect();
        retire_free();
    }

private:
    /// Release the segments of loans whose tensors are all gone.
    void collect() {
        std::vector<ReturnedLoans::Loan> loans;
        {
            const std::lock_guard<std::mutex> lock(returned_->mutex);
            loans.swap(returned_->loans);
        }
        for (const ReturnedLoans::Loan& loan : loans) {
            loan.segment->is_loaned = false;
            if (loan.has_forked) loan.segment->is_tainted = true;
            release(loan.segment);
        }
    }

    /// Publish a loan in place; null if the tensor is not a loan of this pool, or must be copied after all.
    SegmentPtr publish_loan(const Tensor& tensor) {
        LoanStorage* loan = tensor.storage() ? tensor.storage()->as_loan() : nullptr;
        if (!loan || !loan->is_of(returned_)) return nullptr;
        const SegmentPtr& segment = loan->segment();
        if (segment->is_loaned) {
            stamp(*segment, tensor.dtype(), tensor.shape());
            segment->is_loaned = false;
            loan->mark_published();
        } else if (!segment->layout || segment->layout->dtype != tensor.dtype() ||
                   segment->layout->shape != tensor.shape()) {
            return nullptr;  // published before under another shape or dtype: a reader may use that header
        }
        segment->holds += 1;
        return segment;
    }

    /// Publish what the segment holds: its header, if it must change, then a new sequence number.
    void stamp(PoolSegment& segment, DType dtype, const Shape& shape) {
        const std::uint64_t seq = seq_ + 1;
        std::uint64_t* words = segment.words();
        if (has_checksum_ || !segment.layout || segment.layout->dtype != dtype || segment.layout->shape != shape) {
            segment.layout.reset();
            Header header;
            header.dtype = dtype;
            header.shape = shape;
            header.seq = seq;
            header.payload_offset = wire::payload_offset;
            header.created_ns = now_ns();
            header.is_segment = true;
            if (has_checksum_) {
                const std::byte* payload = segment.mapping.data() + wire::payload_offset;
                header.payload_checksum = crc32(payload, nbytes_of(shape, dtype));
            }
            const std::vector<std::byte> raw = encode_header(header);
            std::byte* head = segment.mapping.data();  // copy all but the live line, which the reader stores to as well
            std::memcpy(head, raw.data(), wire::live_offset);
            std::memcpy(head + wire::dims_offset, &raw[wire::dims_offset], raw.size() - wire::dims_offset);
            store_word(words + wire::layout_word, seq);
            segment.layout = PoolSegment::Layout{dtype, shape};
        }
        seq_ = segment.seq = seq;
        store_word(words + wire::seq_copy_word, seq);
        store_word(words + wire::seq_word, seq);  // release: a reader that loads this sees header and payload
        published_ += 1;
    }

    /// A segment without readers, taken off its free list; and whether it holds ``source`` already.
    std::pair<SegmentPtr, bool> take(std::uint64_t nbytes, const void* source) {
        const std::uint64_t capacity = class_nbytes(nbytes);
        takes_ += 1;
        std::pair<SegmentPtr, bool> result(take_free(capacity), false);
        if (!result.first) {
            result = create(capacity, nbytes, source);
        } else if (!result.first->is_populated) {
            ::madvise(result.first->mapping.data(), result.first->mapping.size(), madv_populate_write);
            result.first->is_populated = true;
        }
        result.first->last_take = takes_;
        return result;
    }

    /// A free segment of that capacity that no reader can have a view of; null if there is none.
    SegmentPtr take_free(std::uint64_t capacity) {
        if (SegmentPtr segment = pop_unviewed(capacity)) return segment;
        look_at_awaiting(capacity, wire::looks_per_take);
        return pop_unviewed(capacity);
    }

    /// Put segments whose views are gone back on their free list; looks at the ``count`` that have waited longest.
    void look_at_awaiting(std::uint64_t capacity, std::size_t count) {
        std::deque<SegmentPtr>& awaiting = awaiting_[capacity];
        for (count = std::min(count, awaiting.size()); count > 0; --count) {
            const SegmentPtr segment = std::move(awaiting.front());
            awaiting.pop_front();
            if (segment->is_viewed()) awaiting.push_back(segment);
            else free_[capacity].push_back(segment);
        }
    }

    /// The most recently used free segment whose lease is free. Segments that the reader has a view of are moved to
    /// another list, so that later takes need not look at them again.
    SegmentPtr pop_unviewed(std::uint64_t capacity) {
        std::vector<SegmentPtr>& free = free_[capacity];  // the most recently used is the last
        while (!free.empty()) {
            const SegmentPtr segment = std::move(free.back());
            free.pop_back();
            std::uint64_t* words = segment->words();
            store_word(words + wire::seq_word, 0);  // a reader that stores its lease after this finds another seq
            full_fence();                           // the lease of a reader that stored it before is seen below
            const std::uint64_t lease = load_word(words + wire::lease_word);
            if (load_word(words + wire::guest_word) != 0 || lease == wire::lease_pinned) retire(segment);
            else if (lease == wire::lease_free) return segment;
            else awaiting_[capacity].push_back(segment);
        }
        return nullptr;
    }

    /// A segment has no hold any more: put it on its free list, or retire it.
    void make_free(const SegmentPtr& segment) {
        if (!segments_.count(segment->name)) return;  // the pool is closed
        if (segment->is_tainted) retire(segment);
        else free_[segment->capacity()].push_back(segment);
    }

    std::pair<SegmentPtr, bool> create(std::uint64_t capacity, std::uint64_t nbytes, const void* source) {
        retire_idle(capacity);
        if (budget_nbytes_ && nbytes_ + capacity > *budget_nbytes_) {
            if (SegmentPtr segment = wait_for_room(capacity)) return {segment, false};
        }
        const bool is_written = source && capacity >= wire::populate_nbytes;
        if (!is_written) source = nullptr;
        try {
            return {make_segment(capacity, nbytes, source), is_written};
        } catch (const OutOfSpace&) {
            if (!retire_free()) throw;
            return {make_segment(capacity, nbytes, source), is_written};
        }
    }

    /// At the budget: use a free segment, or retire free ones, else wait for the reader. Returns a segment that fits,
    /// or null if there is room now to make one.
    SegmentPtr wait_for_room(std::uint64_t capacity) {
        const Clock::time_point deadline = std::min(deadline_in(block_ms_), latest_);
        while (true) {
            retire_free();
            if (nbytes_ + capacity <= *budget_nbytes_) return nullptr;
            if (Clock::now() >= deadline || is_reader_gone_()) {
                throw OutOfSpace("a segment of " + std::to_string(capacity) +
                                     " bytes would exceed the session's budget of " + std::to_string(*budget_nbytes_) +
                                     " bytes; " + std::to_string(nbytes_) +
                                     " are in use: drop tensors or views, or raise budget_nbytes",
                                 capacity, nbytes_ < *budget_nbytes_ ? *budget_nbytes_ - nbytes_ : 0, true);
            }
            pause_();
            collect();
            look_at_awaiting(capacity, awaiting_[capacity].size());
            if (SegmentPtr segment = take_free(capacity)) return segment;
        }
    }

    /// A new segment.
    ///
    /// @param source ``nbytes`` bytes to write into it; null to leave it empty.
    SegmentPtr make_segment(std::uint64_t capacity, std::uint64_t nbytes, const void* source) {
        // A name is never used twice, even if this fails: the reader keeps what it has mapped under a name.
        const std::string number = std::to_string(number_++);
        const std::string name = std::string(wire::segment_prefix) + "_" + number + wire::tensor_suffix;
        const std::string path = directory_.path() + "/" + name;
        directory_.check();
        const Fd fd = make_file(path);
        Unlinker unlinker(path);
        if (source) write_all(fd, source, static_cast<std::size_t>(nbytes), wire::payload_offset,
                              directory_.path());
        allocate(fd, wire::head_nbytes + capacity, directory_.path());
        auto segment = std::make_shared<PoolSegment>(name, path, map_write(fd, wire::head_nbytes + capacity));
        if (!source && capacity >= wire::populate_nbytes) {
            ::madvise(segment->mapping.data(), segment->mapping.size(), madv_populate_write);
        }
        segment->is_populated = !source;
        segments_[name] = segment;
        unlinker.keep();
        created_ += 1;
        nbytes_ += capacity;
        return segment;
    }

    static Fd make_file(const std::string& path) {
        try {
            return create_file(path);
        } catch (const SystemError& error) {
            if (error.code != EEXIST) throw;
            refuse_path(path, "is there already, made by another process", "remove it");
        }
    }

    void look_at_all() {
        for (auto& each : awaiting_) look_at_awaiting(each.first, each.second.size());
    }

    /// Once in a while, retire free segments of sizes that no tensor has had for long.
    void retire_idle(std::uint64_t wanted_capacity) {
        const std::uint64_t elapsed = takes_ - trimmed_at_;
        if (elapsed < wire::trim_takes) return;
        trimmed_at_ = takes_;
        for (auto& each : free_) {
            if (each.first == wanted_capacity) continue;
            look_at_awaiting(each.first, wire::looks_per_take * elapsed);
            retire_if(each.second, [this](const PoolSegment& segment) {
                return segment.last_take + wire::idle_takes < takes_ && !segment.is_viewed();
            });
        }
    }

    /// Retire every free segment that the reader has no view of; true if that freed any memory at once.
    bool retire_free() {
        look_at_all();
        bool has_freed = false;
        for (auto& each : free_) {
            has_freed |= retire_if(each.second, [](const PoolSegment& segment) { return !segment.is_viewed(); });
        }
        return has_freed;
    }

    template <class Condition>
    bool retire_if(std::vector<SegmentPtr>& free, Condition condition) {
        bool has_freed = false;
        std::vector<SegmentPtr> kept;
        for (const SegmentPtr& segment : free) {
            if (condition(*segment)) has_freed |= retire(segment);
            else kept.push_back(segment);
        }
        free = std::move(kept);
        return has_freed;
    }

    /// Retire a segment: remove its name, and never fill it again. True if its memory is free now, false if a reader
    /// keeps it until its views are gone.
    bool retire(const SegmentPtr& segment) {
        std::uint64_t* words = segment->words();
        store_word(words + wire::seq_word, wire::seq_retired);
        store_word(words + wire::seq_copy_word, wire::seq_retired);
        full_fence();  // as in take_free
        const bool is_unseen = !segment->is_tainted && load_word(words + wire::lease_word) == wire::lease_free &&
                               load_word(words + wire::guest_word) == 0;
        segments_.erase(segment->name);
        nbytes_ -= segment->capacity();
        if (directory_.is_there()) unlink_file(segment->path);
        if (is_unseen) {
                // The reader still has it mapped; without its pages that costs address space only.
            ::madvise(segment->mapping.data() + wire::payload_offset, segment->capacity(), madv_remove);
        }
        return is_unseen;
    }

    KnownDirectory directory_;
    std::optional<std::uint64_t> budget_nbytes_;
    double block_ms_;
    bool has_checksum_;
    std::function<bool()> is_reader_gone_;
    std::function<void()> pause_;
    Clock::time_point latest_ = Clock::time_point::max();
    std::unordered_map<std::string, SegmentPtr> segments_;   // by name
    std::map<std::uint64_t, std::vector<SegmentPtr>> free_;  // by capacity
    std::map<std::uint64_t, std::deque<SegmentPtr>> awaiting_;  // by capacity: the reader had a view at the last look
    std::uint64_t trimmed_at_ = 0;                              // the count of takes then
    std::shared_ptr<ReturnedLoans> returned_ = std::make_shared<ReturnedLoans>();
    std::uint64_t nbytes_ = 0;
    std::uint64_t seq_ = 0;
    std::uint64_t number_ = 0;  // of the next segment's name
    std::uint64_t created_ = 0;
    std::uint64_t published_ = 0;
    std::uint64_t copied_nbytes_ = 0;
    std::uint64_t takes_ = 0;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_POOL_HPP
