// One segment as its owner sees it, and the loans that are made of it. Never decides when a segment is filled again:
// the pool does.
#ifndef TR_MMAP_SEGMENT_HPP
#define TR_MMAP_SEGMENT_HPP

#include "macros_off.hpp"

#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fork_safety.hpp"
#include "layout.hpp"
#include "system.hpp"
#include "tensor.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// One segment, as its owner sees it.
struct PoolSegment {
    PoolSegment(std::string file_name, std::string file_path, Mapping memory)
        : name(std::move(file_name)), path(std::move(file_path)), mapping(std::move(memory)) {}
    PoolSegment(const PoolSegment&) = delete;
    PoolSegment& operator=(const PoolSegment&) = delete;
    ~PoolSegment() {
        if (std::byte* known = readable) ::munmap(known, mapping.size());
    }

    std::uint64_t* words() const { return words_of(mapping.data()); }
    std::uint64_t capacity() const { return mapping.size() - wire::payload_offset; }

    /// Whether the reader has a view. Then retiring the segment would free no memory, and the pool would no longer
    /// count it.
    bool is_viewed() const { return load_word(words() + wire::lease_word) == wire::lease_held; }

    /// The same memory, mapped read-only, for the tensors of a loan that was published. Any thread may call this. It
    /// takes no lock, because in a forked child a thread of the parent could hold that for ever.
    std::byte* read_only() {
        if (std::byte* known = readable) return known;
        // Size 0 duplicates a shared mapping, also of a file whose name is gone: mremap(2).
        void* address = ::mremap(mapping.data(), 0, mapping.size(), MREMAP_MAYMOVE);
        if (address == MAP_FAILED) {
            const int code = errno;
            fail_call("mremap of " + std::to_string(mapping.size()) + " bytes", code);
        }
        Mapping mine = Mapping::adopt(address, mapping.size());
        if (::mprotect(address, mapping.size(), PROT_READ) != 0) fail_call("mprotect", errno);
        std::byte* none = nullptr;
        if (!readable.compare_exchange_strong(none, mine.data())) return none;  // another thread was faster
        mine.leave();
        return readable;
    }

    struct Layout {
        DType dtype;
        Shape shape;
    };

    const std::string name;  // never used twice
    const std::string path;
    const Mapping mapping;
    std::atomic<std::byte*> readable{nullptr};  // as large as mapping
    std::uint64_t seq = 0;
    int holds = 0;  // how many tags, messages and loans need its content; it is filled again only when this is 0
    std::optional<Layout> layout;
    std::atomic<bool> is_loaned{false};  // handed out by empty() and not published yet
    bool is_tainted = false;      // a process without a lease may have a view: retire it, never fill it again
    bool is_populated = false;    // our mapping has its pages
    std::uint64_t last_take = 0;  // when it was last taken from its free list, by the pool's count of takes
};

/// Loans whose tensors are all gone. The thread that destroys the last tensor adds its loan.
struct ReturnedLoans {
    struct Loan {
        std::shared_ptr<PoolSegment> segment;
        bool has_forked;  // while it was on loan: a child may have a view for ever
    };
    std::mutex mutex;
    std::vector<Loan> loans;
};

/// The memory of a loan.
class LoanStorage final : public Storage {
public:
    /// @param returned the pool's; the loan is added there when its last tensor is gone.
    LoanStorage(std::shared_ptr<PoolSegment> segment, std::shared_ptr<ReturnedLoans> returned)
        : segment_(std::move(segment)), returned_(std::move(returned)), fork_count_(ForkState::fork_count()) {}
    ~LoanStorage() override {
        if (ForkState::pid() != pid_) return;  // in a forked child, a thread of the parent may hold the list's mutex
        try {
            const std::lock_guard<std::mutex> lock(returned_->mutex);
            returned_->loans.push_back({segment_, ForkState::fork_count() != fork_count_});
        } catch (...) {
            // No memory for the list: the pool does not use the segment again before the session ends.
        }
    }
    std::byte* data() override {
        return (is_writable() ? segment_->mapping.data() : segment_->read_only()) + wire::payload_offset;
    }
    bool is_writable() const noexcept override { return !is_published_; }
    LoanStorage* as_loan() noexcept override { return this; }
    void mark_published() noexcept { is_published_ = true; }
    const std::shared_ptr<PoolSegment>& segment() const noexcept { return segment_; }
    /// Whether the pool with this list made the loan.
    bool is_of(const std::shared_ptr<ReturnedLoans>& returned) const noexcept { return returned == returned_; }

private:
    std::shared_ptr<PoolSegment> segment_;
    std::shared_ptr<ReturnedLoans> returned_;
    std::uint64_t fork_count_;
    pid_t pid_ = ForkState::pid();  // of the process that the loan belongs to
    std::atomic<bool> is_published_{false};
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SEGMENT_HPP
