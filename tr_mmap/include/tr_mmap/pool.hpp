// The owner's side of segments: a pool of them that are filled, published and filled again. Not safe for threads by
// itself; its session holds a lock. The protocol is that of tr_mmap/segments/__init__.py; the orders of its loads and
// stores are explained in layout.hpp.
#ifndef TR_MMAP_POOL_HPP
#define TR_MMAP_POOL_HPP

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "header_write.hpp"
#include "layout.hpp"
#include "segment.hpp"
#include "system.hpp"
#include "tensor.hpp"
#include "tsr.hpp"

namespace tr {

/// What a session holds in shared memory on this side.
struct PoolStats {
    std::size_t segments = 0;          // files there are
    std::uint64_t nbytes = 0;          // their payload capacity together
    std::uint64_t free_nbytes = 0;     // of those that nobody on this side holds
    std::uint64_t published = 0;       // tensors published since the start
    std::uint64_t copied_nbytes = 0;   // bytes copied into segments since the start; a loan adds none
    std::uint64_t created = 0;         // segments made since the start; all other publishes used one again
};

namespace detail {

inline constexpr int madv_remove = 9;           // linux/mman.h: give the pages back to the file system now
inline constexpr int madv_populate_write = 23;  // 5.14; fails harmlessly before
// From here on a new file is filled by write(2), which spares zeroing the pages first and faulting them in one by one,
// and a mapping is populated in one call before it is first filled.
inline constexpr std::uint64_t write_nbytes = 256 << 10;
// A free segment that so many takes in a row did not want is given back: the traffic has changed its sizes.
inline constexpr std::uint64_t idle_takes = 512;

/// Makes, fills and recycles the segments of one side of a session.
class SegmentPool {
public:
    using SegmentPtr = std::shared_ptr<Segment>;

    /// @param budget_nbytes most payload capacity to hold at once; nothing for no limit but the file system's.
    /// @param block_ms at the budget, how long to wait for the reader to let go before throwing OutOfSpace.
    /// @param has_checksum whether to store each payload's CRC-32.
    /// @param has_reader_died tells a wait for the reader that there is nobody to wait for.
    SegmentPool(std::string directory, std::optional<std::uint64_t> budget_nbytes, double block_ms, bool has_checksum,
                std::function<bool()> has_reader_died)
        : directory_(std::move(directory)),
          budget_nbytes_(budget_nbytes),
          block_ms_(block_ms),
          has_checksum_(has_checksum),
          has_reader_died_(std::move(has_reader_died)) {}

    /// Put a tensor into a segment and stamp it; the caller holds it once until release(). A loan is published where it
    /// lies; anything else costs one copy.
    SegmentPtr publish(const Tensor& tensor) {
        collect();
        if (SegmentPtr segment = publish_loan(tensor)) return segment;
        const std::size_t nbytes = tensor.nbytes();
        const void* source = tensor.data_ptr();
        auto [segment, is_filled] = take(nbytes, source);
        try {
            if (!is_filled && nbytes) std::memcpy(segment->mapping.data() + payload_offset, source, nbytes);
            stamp(*segment, tensor.dtype(), tensor.shape());
        } catch (...) {
            put_back(segment);
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
        auto storage = std::make_shared<LoanStorage>(segment, returns_);
        segment->holds += 1;  // until the last tensor over it is gone
        segment->is_loaned = true;
        return Tensor(shape, dtype, std::move(storage));
    }

    /// Undo one hold; with the last one gone the segment may be filled again once its reader lets go.
    void release(const SegmentPtr& segment) {
        if (--segment->holds == 0) put_back(segment);
    }

    /// The reader's leases mean nothing any more, but a child of it may live: never fill again what it held.
    void reader_died() {
        for (const auto& each : segments_) {
            if (load_word(each.second->words() + lease_word) != lease_free) each.second->is_tainted = true;
        }
        for (auto& each : free_) {
            retire_if(each.second, [](const Segment& segment) { return segment.is_tainted; });
        }
    }

    PoolStats stats() {
        collect();
        PoolStats result;
        result.segments = segments_.size();
        result.nbytes = nbytes_;
        for (const auto& each : free_) result.free_nbytes += each.first * each.second.size();
        result.published = published_;
        result.copied_nbytes = copied_nbytes_;
        result.created = created_;
        return result;
    }

    /// Remove the files; tensors that still live keep their memory until they are gone.
    void close() noexcept {
        for (const auto& each : segments_) unlink_file(each.second->path);
        segments_.clear();
        free_.clear();
    }

private:
    /// Take back loans whose tensors are all gone.
    void collect() {
        std::vector<Returns::Loan> loans;
        {
            const std::lock_guard<std::mutex> lock(returns_->mutex);
            loans.swap(returns_->loans);
        }
        for (const Returns::Loan& loan : loans) {
            loan.segment->is_loaned = false;
            if (loan.has_forked) loan.segment->is_tainted = true;
            release(loan.segment);
        }
    }

    /// Publish a loan where it lies; null if it is none, or its memory has to be copied after all.
    SegmentPtr publish_loan(const Tensor& tensor) {
        auto* loan = dynamic_cast<LoanStorage*>(tensor.storage().get());
        if (!loan || !loan->is_of(returns_)) return nullptr;
        const SegmentPtr& segment = loan->segment();
        if (segment->is_loaned) {
            stamp(*segment, tensor.dtype(), tensor.shape());
            segment->is_loaned = false;
            loan->mark_sent();
        } else if (!segment->layout || segment->layout->dtype != tensor.dtype() ||
                   segment->layout->shape != tensor.shape()) {
            return nullptr;  // published before as something else: that header may be in use
        }
        segment->holds += 1;
        return segment;
    }

    void stamp(Segment& segment, DType dtype, const Shape& shape) {
        const std::uint64_t seq = seq_ + 1;
        std::uint64_t* words = segment.words();
        if (has_checksum_ || !segment.layout || segment.layout->dtype != dtype || segment.layout->shape != shape) {
            segment.layout.reset();
            Header header;
            header.dtype = dtype;
            header.shape = shape;
            header.seq = seq;
            header.payload_offset = payload_offset;
            header.created_ns = now_ns();
            header.is_segment = true;
            if (has_checksum_) {
                header.payload_checksum = crc32(segment.mapping.data() + payload_offset, nbytes_of(shape, dtype));
            }
            const std::vector<std::byte> raw = encode_header(header);
            std::memcpy(segment.mapping.data(), raw.data(), 64);
            std::memcpy(segment.mapping.data() + 128, raw.data() + 128, 128);
            store_word(words + layout_word, seq);
            segment.layout = Segment::Layout{dtype, shape};
        }
        seq_ = segment.seq = seq;
        store_word(words + seq_copy_word, seq);
        store_word(words + seq_word, seq);  // release: who sees this sees header and payload
        published_ += 1;
    }

    /// A segment that nobody else can be looking at, on no list until put back; and whether it holds ``source``.
    std::pair<SegmentPtr, bool> take(std::uint64_t nbytes, const void* source) {
        const std::uint64_t capacity = class_nbytes(nbytes);
        takes_ += 1;
        std::pair<SegmentPtr, bool> result(take_free(capacity), false);
        if (!result.first) {
            result = create(capacity, nbytes, nbytes >= write_nbytes ? source : nullptr);
        } else if (!result.first->is_populated) {
            ::madvise(result.first->mapping.data(), result.first->mapping.size(), madv_populate_write);
            result.first->is_populated = true;
        }
        result.first->last_take = takes_;
        return result;
    }

    SegmentPtr take_free(std::uint64_t capacity) {
        const auto found = free_.find(capacity);
        if (found == free_.end()) return nullptr;
        std::vector<SegmentPtr>& free = found->second;  // the last one is the warmest
        for (std::size_t index = free.size(); index-- > 0;) {
            const SegmentPtr segment = free[index];
            std::uint64_t* words = segment->words();
            store_word(words + seq_word, 0);  // a reader that enters now is turned away
            full_fence();                     // and one that has entered is seen
            const std::uint64_t lease = load_word(words + lease_word);
            if (load_word(words + guest_word) != 0 || lease == lease_pinned) {
                free.erase(free.begin() + static_cast<std::ptrdiff_t>(index));
                retire(segment);
            } else if (lease == lease_free) {
                free.erase(free.begin() + static_cast<std::ptrdiff_t>(index));
                return segment;
            }
        }
        return nullptr;
    }

    void put_back(const SegmentPtr& segment) {
        if (!segments_.count(segment->name)) return;
        if (segment->is_tainted) retire(segment);
        else free_[segment->capacity()].push_back(segment);
    }

    std::pair<SegmentPtr, bool> create(std::uint64_t capacity, std::uint64_t nbytes, const void* source) {
        trim(capacity);
        if (budget_nbytes_ && nbytes_ + capacity > *budget_nbytes_) {
            if (SegmentPtr segment = wait_for_room(capacity)) return {segment, false};
        }
        try {
            return {make_file(capacity, nbytes, source), source != nullptr};
        } catch (const OutOfSpace&) {
            if (!retire_free()) throw;
            return {make_file(capacity, nbytes, source), source != nullptr};
        }
    }

    /// At the budget: use what is free, else wait for the reader. A fitting segment, or null: make one.
    SegmentPtr wait_for_room(std::uint64_t capacity) {
        const auto start = std::chrono::steady_clock::now();
        while (true) {
            retire_free();
            if (nbytes_ + capacity <= *budget_nbytes_) return nullptr;
            const std::chrono::duration<double, std::milli> waited = std::chrono::steady_clock::now() - start;
            if (!(waited.count() < block_ms_) || has_reader_died_()) {
                throw OutOfSpace("a segment of " + std::to_string(capacity) + " bytes would exceed the pool's budget of " +
                                     std::to_string(*budget_nbytes_) + "; " + std::to_string(nbytes_) +
                                     " are in use: drop tensors or views, or raise budget_nbytes",
                                 capacity, nbytes_ < *budget_nbytes_ ? *budget_nbytes_ - nbytes_ : 0);
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            collect();
            if (SegmentPtr segment = take_free(capacity)) return segment;
        }
    }

    SegmentPtr make_file(std::uint64_t capacity, std::uint64_t nbytes, const void* source) {
        const std::string name = "segment_" + std::to_string(number_++) + ".tsr";  // never again, whatever comes of it
        const std::string path = directory_ + "/" + name;
        const Fd fd = create_file(path);
        Unlinker unlinker(path);
        if (source) write_all(fd, source, static_cast<std::size_t>(nbytes), payload_offset, directory_);
        allocate(fd, head_nbytes + capacity, directory_);
        auto segment = std::make_shared<Segment>(name, path, map_write(fd, head_nbytes + capacity));
        if (!source && capacity >= write_nbytes) {
            ::madvise(segment->mapping.data(), segment->mapping.size(), madv_populate_write);
        }
        segment->is_populated = !source || capacity < write_nbytes;
        segments_[name] = segment;
        unlinker.keep();
        created_ += 1;
        nbytes_ += capacity;
        return segment;
    }

    /// Give back free segments of sizes that the traffic no longer uses.
    void trim(std::uint64_t wanted_capacity) {
        for (auto& each : free_) {
            if (each.first == wanted_capacity) continue;
            retire_if(each.second, [this](const Segment& segment) {
                return segment.last_take + idle_takes < takes_ && !segment.is_looked_at();
            });
        }
    }

    /// Give back every free segment that the reader does not look at; true if that freed any memory at once.
    bool retire_free() {
        bool has_freed = false;
        for (auto& each : free_) {
            has_freed |= retire_if(each.second, [](const Segment& segment) { return !segment.is_looked_at(); });
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

    /// Give a segment up; true if its memory is free now, false if a viewer keeps it until it lets go.
    bool retire(const SegmentPtr& segment) {
        std::uint64_t* words = segment->words();
        store_word(words + seq_word, seq_retired);
        store_word(words + seq_copy_word, seq_retired);
        full_fence();  // as in take_free
        const bool is_unseen = !segment->is_tainted && load_word(words + lease_word) == lease_free &&
                               load_word(words + guest_word) == 0;
        segments_.erase(segment->name);
        nbytes_ -= segment->capacity();
        unlink_file(segment->path);
        if (is_unseen) {
            // The reader has it mapped still; without its pages that costs address space only.
            ::madvise(segment->mapping.data() + payload_offset, segment->capacity(), madv_remove);
        }
        return is_unseen;
    }

    std::string directory_;
    std::optional<std::uint64_t> budget_nbytes_;
    double block_ms_;
    bool has_checksum_;
    std::function<bool()> has_reader_died_;
    std::unordered_map<std::string, SegmentPtr> segments_;
    std::map<std::uint64_t, std::vector<SegmentPtr>> free_;
    std::shared_ptr<Returns> returns_ = std::make_shared<Returns>();
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

#endif  // TR_MMAP_POOL_HPP
