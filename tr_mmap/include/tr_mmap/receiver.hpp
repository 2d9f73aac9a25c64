// The reader's side of segments: maps each once, hands out views, keeps a lease for as long as one lives.
#ifndef TR_MMAP_RECEIVER_HPP
#define TR_MMAP_RECEIVER_HPP

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "forks.hpp"
#include "header.hpp"
#include "layout.hpp"
#include "protocol.hpp"
#include "system.hpp"
#include "tensor.hpp"

namespace tr {
namespace detail {

/// One segment of the peer, as we see it. Forks::mutex guards the counts and the lease.
struct Mapped {
    Mapped(Mapping header, Mapping file) : head(std::move(header)), payload(std::move(file)) {}

    std::uint64_t* words() const { return words_of(head.data()); }

    /// Give the lease back, unless a child that we forked may hold views that nobody tells of.
    void let_go() {
        store_word(words() + lease_word, is_pinned ? lease_pinned : lease_free);
    }

    const Mapping head;     // writable, for the lease
    const Mapping payload;  // the whole file, read-only, so that offsets are those of the header
    Header parsed;
    std::uint64_t layout_seq = 0;  // with which it was parsed
    std::size_t views = 0;
    std::uint64_t forks = 0;  // when the first of the views was made
    pid_t process = Forks::process();
    bool is_pinned = false;
};

/// A view of a segment.
class SegmentView final : public Storage {
public:
    /// Forks::mutex is held, and so is the lease.
    SegmentView(std::shared_ptr<Mapped> segment, std::uint64_t offset) : segment_(std::move(segment)), offset_(offset) {
        if (segment_->views++ == 0) segment_->forks = Forks::count();
    }
    ~SegmentView() override {
        if (Forks::process() != segment_->process) return;  // a fork's child: the lease is its parent's
        const std::lock_guard<std::mutex> lock(Forks::mutex());
        if (--segment_->views > 0) return;
        if (segment_->forks != Forks::count()) segment_->is_pinned = true;
        segment_->let_go();
    }
    std::byte* data() override { return segment_->payload.data() + offset_; }
    bool is_writable() const noexcept override { return false; }

private:
    std::shared_ptr<Mapped> segment_;
    std::uint64_t offset_;
};

/// Turns the worker's TensorRefs into read-only tensors. Not safe for threads by itself; its tensors are.
class Receiver {
public:
    Receiver(std::string directory, bool is_to_verify) : directory_(std::move(directory)), is_to_verify_(is_to_verify) {}

    /// A view of the tensor; the segment is not filled again while it, or a copy of it, lives.
    ///
    /// @throws StaleTensor the segment holds another tensor by now, or is gone.
    /// @throws TSRFormatError what is there is not a tensor; PAYLOAD_CHECKSUM: not the one that was published.
    Tensor receive(const TensorRef& ref) {
        const std::shared_ptr<Mapped> segment = find(ref);
        Header header;
        std::shared_ptr<Storage> view;
        {
            const std::lock_guard<std::mutex> lock(Forks::mutex());
            std::uint64_t* words = segment->words();
            store_word(words + lease_word, lease_held);  // before the check: an owner that has not seen it yet has
            full_fence();                                // cleared seq already
            try {
                const std::uint64_t seq = load_word(words + seq_word);  // acquire: the payload is behind it
                if (seq != ref.seq || load_word(words + seq_copy_word) != ref.seq || ref.seq == 0 ||
                    ref.seq == seq_retired) {
                    stale(ref);
                }
                parse(*segment, ref);
                header = segment->parsed;
                if (header.payload_nbytes != 0) view = std::make_shared<SegmentView>(segment, header.payload_offset);
            } catch (...) {
                if (segment->views == 0) segment->let_go();
                throw;
            }
            if (segment->views == 0) segment->let_go();
        }
        if (is_to_verify_) verify(*segment, header, ref);  // the view holds the lease meanwhile
        return Tensor(header.shape, header.dtype, std::move(view));
    }

private:
    std::shared_ptr<Mapped> find(const TensorRef& ref) {
        const auto known = mapped_.find(ref.segment);
        if (known != mapped_.end()) return known->second;
        for (auto each = mapped_.begin(); each != mapped_.end();) {  // forget what the owner has given up
            const std::lock_guard<std::mutex> lock(Forks::mutex());
            const bool is_gone =
                each->second->views == 0 && load_word(each->second->words() + seq_word) == seq_retired;
            each = is_gone ? mapped_.erase(each) : std::next(each);
        }
        const bool is_a_name = is_plain_name(ref.segment, 204) && ref.segment.size() > 4 &&
                               ref.segment.compare(ref.segment.size() - 4, 4, ".tsr") == 0;
        if (!is_a_name) {
            const std::string shown = ref.segment.substr(0, 80);
            throw BadMessage("a message names '" + shown + "', and no segment is called so", shown);
        }
        const std::string path = directory_ + "/" + ref.segment;
        const Fd fd = open_private_file(path, true);
        if (!fd) stale(ref);
        const std::uint64_t nbytes = file_nbytes(fd, path);
        if (nbytes < head_nbytes) stale(ref);
        if (is_sparse(fd, path)) refuse_path(path, "has holes", "no owner makes such a segment");
        auto segment = std::make_shared<Mapped>(map_write(fd, head_nbytes), map_read(fd, nbytes));
        // A child of ours may have a view that we had when it was forked: that lease is not ours to give back.
        segment->is_pinned = load_word(segment->words() + lease_word) == lease_pinned;
        mapped_[ref.segment] = segment;
        return segment;
    }

    static void parse(Mapped& segment, const TensorRef& ref) {
        const std::uint64_t layout_seq = load_word(segment.words() + layout_word);
        if (layout_seq == segment.layout_seq && layout_seq != 0) return;
        segment.layout_seq = 0;
        std::byte raw[V2_HEADER_NBYTES];
        std::memcpy(raw, segment.head.data(), sizeof raw);  // one copy, then parsed: the peer could change it
        segment.parsed = decode_header(raw, sizeof raw, segment.payload.size(), ref.segment);
        if (!segment.parsed.is_segment) {
            throw TSRFormatError(ref.segment + " is a plain TSR file, not a segment", Fault::BAD_FLAGS, ref.segment);
        }
        segment.layout_seq = layout_seq;
    }

    static void verify(const Mapped& segment, const Header& header, const TensorRef& ref) {
        if (!header.payload_checksum) {
            throw TSRFormatError(ref.segment + " has no checksum, and this session's tensors have one",
                                 Fault::PAYLOAD_CHECKSUM, ref.segment);
        }
        const auto nbytes = static_cast<std::size_t>(header.payload_nbytes);
        if (crc32(segment.payload.data() + header.payload_offset, nbytes) != *header.payload_checksum) {
            throw TSRFormatError(ref.segment + ": the payload's checksum is not the header's: changed on the way",
                                 Fault::PAYLOAD_CHECKSUM, ref.segment);
        }
    }

    [[noreturn]] static void stale(const TensorRef& ref) {
        throw StaleTensor((ref.tag.empty() ? "the result" : "tensor '" + ref.tag + "'") + " (number " +
                              std::to_string(ref.seq) + " in " + ref.segment + ") is not there any more; send it again",
                          ref.segment, ref.seq);
    }

    std::string directory_;
    bool is_to_verify_;
    std::map<std::string, std::shared_ptr<Mapped>> mapped_;
};

}  // namespace detail
}  // namespace tr

#endif  // TR_MMAP_RECEIVER_HPP
