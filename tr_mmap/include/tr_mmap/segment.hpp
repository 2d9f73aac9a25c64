// One segment as its owner sees it, and the loans that are made of it. Never decides when one is filled again: that is
// the pool's business.
#ifndef TR_MMAP_SEGMENT_HPP
#define TR_MMAP_SEGMENT_HPP

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

#include "forks.hpp"
#include "layout.hpp"
#include "system.hpp"
#include "tensor.hpp"

namespace tr {
namespace detail {

/// One segment, as its owner sees it.
struct Segment {
    Segment(std::string file_name, std::string file_path, Mapping memory)
        : name(std::move(file_name)), path(std::move(file_path)), mapping(std::move(memory)) {}

    std::uint64_t* words() const { return words_of(mapping.data()); }
    std::uint64_t capacity() const { return mapping.size() - payload_offset; }

    /// The reader has a view: giving the segment up would free nothing, and nobody would count it any more.
    bool is_looked_at() const { return load_word(words() + lease_word) == lease_held; }

    /// The same memory where it cannot be written, for the lender of a loan that was sent.
    std::byte* read_only() {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!readable) {
            // Size 0 duplicates a shared mapping, also of a file whose name is gone: mremap(2).
            void* address = ::mremap(mapping.data(), 0, mapping.size(), MREMAP_MAYMOVE);
            if (address == MAP_FAILED) throw SystemError("mremap", errno);
            readable = Mapping::adopt(address, mapping.size());
            if (::mprotect(address, mapping.size(), PROT_READ) != 0) throw SystemError("mprotect", errno);
        }
        return readable.data();
    }

    struct Layout {
        DType dtype;
        Shape shape;
    };

    const std::string name;  // never used twice
    const std::string path;
    const Mapping mapping;
    Mapping readable;
    std::mutex mutex;  // of readable
    std::uint64_t seq = 0;
    int holds = 0;  // reasons why it may not be filled: tags, messages, loans
    std::optional<Layout> layout;
    std::atomic<bool> is_loaned{false};  // handed out by empty() and not published yet
    bool is_tainted = false;             // somebody we cannot ask may be looking: retire it, never fill it again
    bool is_populated = false;           // our mapping has its pages in place
    std::uint64_t last_take = 0;
};

/// Loans whose tensors are all gone, told by whatever thread let go of the last one.
struct Returns {
    struct Loan {
        std::shared_ptr<Segment> segment;
        bool has_forked;  // while it was lent: a child may look at it for ever
    };
    std::mutex mutex;
    std::vector<Loan> loans;
};

/// The memory of a loan.
class LoanStorage final : public Storage {
public:
    LoanStorage(std::shared_ptr<Segment> segment, std::shared_ptr<Returns> returns)
        : segment_(std::move(segment)), returns_(std::move(returns)), forks_(Forks::count()) {}
    ~LoanStorage() override {
        try {
            const std::lock_guard<std::mutex> lock(returns_->mutex);
            returns_->loans.push_back({segment_, Forks::count() != forks_});
        } catch (...) {
            // No memory to say so: the segment is not used again before the session ends.
        }
    }
    std::byte* data() override {
        return (is_writable() ? segment_->mapping.data() : segment_->read_only()) + payload_offset;
    }
    bool is_writable() const noexcept override { return !is_sent_; }
    void mark_sent() noexcept { is_sent_ = true; }
    const std::shared_ptr<Segment>& segment() const noexcept { return segment_; }
    bool is_of(const std::shared_ptr<Returns>& returns) const noexcept { return returns == returns_; }

private:
    std::shared_ptr<Segment> segment_;
    std::shared_ptr<Returns> returns_;
    std::uint64_t forks_;
    std::atomic<bool> is_sent_{false};
};

}  // namespace detail
}  // namespace tr

#endif  // TR_MMAP_SEGMENT_HPP
