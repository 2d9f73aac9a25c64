// The reader's side of segments: maps each file once, hands out views, keeps a lease for as long as one lives.
#ifndef TR_MMAP_SEGMENT_READER_HPP
#define TR_MMAP_SEGMENT_READER_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "crc32.hpp"
#include "fork_safety.hpp"
#include "header.hpp"
#include "identifiers.hpp"
#include "layout.hpp"
#include "protocol.hpp"
#include "system.hpp"
#include "tensor.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// A file of the worker's: one segment, or a slab of many.
struct MappedFile {
    MappedFile(Mapping headers, Mapping file) : heads(std::move(headers)), payload(std::move(file)) {}

    const Mapping heads;    // of all its segments, writable, for the leases
    const Mapping payload;  // the whole file, read-only, so that offsets are those of the headers
};

/// One segment of the worker's, as its reader sees it. ForkState::mutex guards the counts and the lease.
struct MappedSegment {
    MappedSegment(std::string segment_name, std::shared_ptr<const MappedFile> mapped, std::uint64_t slot)
        : name(std::move(segment_name)),
          file(std::move(mapped)),
          head(file->heads.data() + slot * wire::head_nbytes),
          payload(file->payload) {}

    std::uint64_t* words() const { return words_of(head); }

    /// Release the lease, unless a child that we forked may have views whose end we do not learn of.
    void release_lease() {
        store_word(words() + wire::lease_word, is_pinned ? wire::lease_pinned : wire::lease_free);
    }

    const std::string name;
    const std::shared_ptr<const MappedFile> file;
    std::byte* const head;
    const Mapping& payload;  // of the whole file
    Header parsed;
    std::uint64_t layout_seq = 0;  // the number of the layout that ``parsed`` describes; 0 for none
    std::size_t views = 0;
    std::uint64_t fork_count = 0;  // when the first of the views was made
    pid_t pid = ForkState::pid();  // of the process that the lease belongs to
    bool is_pinned = false;        // a forked child may have a view for ever, so the lease is never released
    bool is_recent = false;        // used since forget_some() looked at it
};

/// A view of a segment.
class SegmentView final : public Storage {
public:
    /// Call it with ForkState::mutex and the lease held.
    SegmentView(std::shared_ptr<MappedSegment> segment, std::uint64_t offset)
        : segment_(std::move(segment)), offset_(offset) {
        if (segment_->views++ == 0) segment_->fork_count = ForkState::fork_count();
    }
    ~SegmentView() override {
        if (ForkState::pid() != segment_->pid) return;  // in a forked child: the lease belongs to the parent
        const std::lock_guard<std::mutex> lock(ForkState::mutex());
        if (--segment_->views > 0) return;
        if (segment_->fork_count != ForkState::fork_count()) segment_->is_pinned = true;
        segment_->release_lease();
    }
    std::byte* data() override { return segment_->payload.data() + offset_; }
    bool is_writable() const noexcept override { return false; }

private:
    std::shared_ptr<MappedSegment> segment_;
    std::uint64_t offset_;
};

/// Turns the worker's TensorRefs into read-only tensors. Not safe for threads by itself; its tensors are.
class SegmentReader {
public:
    /// @param is_to_verify compare each payload with its CRC-32, which must be there.
    SegmentReader(std::string directory, bool is_to_verify)
        : directory_(std::move(directory)), is_to_verify_(is_to_verify) {}

    /// A view of the tensor; the segment is not filled again while the view, or a copy of it, lives.
    ///
    /// @throws StaleTensor the segment holds another tensor by now, or is gone.
    /// @throws SessionNotStarted the session's directory was removed or replaced.
    /// @throws BadMessage the name cannot be that of a segment.
    /// @throws TSRFormatError the file holds no tensor; PAYLOAD_CHECKSUM: the payload does not match its checksum.
    Tensor receive(const TensorRef& ref) {
        const std::shared_ptr<MappedSegment> segment = find(ref);
        Header header;
        std::shared_ptr<Storage> view;
        {
            const std::lock_guard<std::mutex> lock(ForkState::mutex());
            segment->is_recent = true;
            std::uint64_t* words = segment->words();
            // Before the check: an owner that does not see this lease has cleared seq already, so the check fails.
            store_word(words + wire::lease_word, wire::lease_held);
            full_fence();
            try {
                const std::uint64_t seq = load_word(words + wire::seq_word);  // acquire: the payload belongs to it
                const std::uint64_t seq_copy = load_word(words + wire::seq_copy_word);
                if (seq != ref.seq || seq_copy != ref.seq || ref.seq == 0 || ref.seq == wire::seq_retired) stale(ref);
                parse(*segment, ref);
                header = segment->parsed;
                if (header.payload_nbytes != 0) view = std::make_shared<SegmentView>(segment, header.payload_offset);
            } catch (...) {
                if (segment->views == 0) segment->release_lease();
                throw;
            }
            if (segment->views == 0) segment->release_lease();
        }
        if (is_to_verify_) verify(*segment, header, ref);  // the view holds the lease meanwhile
        return Tensor(header.shape, header.dtype, std::move(view));
    }

private:
    std::shared_ptr<MappedSegment> find(const TensorRef& ref) {
        const auto known = mapped_.find(ref.segment);
        if (known != mapped_.end()) return known->second;
        forget_some();
        if (!is_segment_name(ref.segment)) {
            const std::string shown = ref.segment.substr(0, 80);
            throw BadMessage("a message names '" + shown + "', and no segment is called so", shown);
        }
        const Place place = place_of(ref.segment);
        std::shared_ptr<const MappedFile> file;
        if (place.slots) file = slabs_[place.file].lock();
        if (!file) {
            file = map_file(place, ref);
            if (place.slots) slabs_[place.file] = file;
        }
        auto segment = std::make_shared<MappedSegment>(ref.segment, std::move(file), place.slot);
        // A forked child of this process may use a view that we had at the fork: never release that lease.
        segment->is_pinned = load_word(segment->words() + wire::lease_word) == wire::lease_pinned;
        order_.push_back(segment);
        mapped_[ref.segment] = segment;
        return segment;
    }

    std::shared_ptr<const MappedFile> map_file(const Place& place, const TensorRef& ref) const {
        const std::string path = directory_.path() + "/" + place.file;
        const Fd fd = open_private_file(path, true);
        directory_.check();  // now: what was opened before this is in the directory
        if (!fd) stale(ref);
        const std::uint64_t nbytes = file_nbytes(fd, path);
        if (nbytes < place.min_file_nbytes()) stale(ref);
        if (is_sparse(fd, path)) refuse_path(path, "has holes", "no owner makes such a segment");
        return std::make_shared<const MappedFile>(map_write(fd, place.heads_nbytes()), map_read(fd, nbytes));
    }

    /// Look at a few segments. Unmap those without views that the owner has retired; and, if too many are mapped, those
    /// that were not used since the last look. So mapping a new segment costs the same however many there are.
    void forget_some() {
        const std::lock_guard<std::mutex> lock(ForkState::mutex());
        for (std::size_t looks = std::min<std::size_t>(wire::looks_per_take, order_.size()); looks > 0; --looks) {
            const std::shared_ptr<MappedSegment> segment = std::move(order_.front());
            order_.pop_front();
            const bool is_retired = load_word(segment->words() + wire::seq_word) == wire::seq_retired;
            const bool is_one_too_many = mapped_.size() > wire::max_unviewed && !segment->is_recent;
            segment->is_recent = false;  // it has until the next look to be used
            if (segment->views > 0 || !(is_retired || is_one_too_many)) {
                order_.push_back(segment);
                continue;
            }
            mapped_.erase(segment->name);
            const auto slab = slabs_.find(place_of(segment->name).file);
            if (slab != slabs_.end() && segment->file.use_count() == 1) slabs_.erase(slab);
        }
    }

    /// Parse the header, if its layout has changed since the last time.
    static void parse(MappedSegment& segment, const TensorRef& ref) {
        const std::uint64_t layout_seq = load_word(segment.words() + wire::layout_word);
        if (layout_seq == segment.layout_seq && layout_seq != 0) return;
        segment.layout_seq = 0;
        std::byte raw[wire::v2_header_nbytes];
        std::memcpy(raw, segment.head, sizeof raw);  // parse a copy, because the peer could change the header meanwhile
        segment.parsed = decode_header(raw, sizeof raw, segment.payload.size(), ref.segment);
        if (!segment.parsed.is_segment) {
            throw TSRFormatError(ref.segment + " is a plain TSR file, not a segment", Fault::BAD_FLAGS, ref.segment);
        }
        segment.layout_seq = layout_seq;
    }

    static void verify(const MappedSegment& segment, const Header& header, const TensorRef& ref) {
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
        const std::string what = ref.tag.empty() ? "the result" : "tensor '" + ref.tag + "'";
        throw StaleTensor(what + " (number " + std::to_string(ref.seq) + " in " + ref.segment +
                              ") is not there any more; send it again",
                          ref.segment, ref.seq);
    }

    KnownDirectory directory_;
    bool is_to_verify_;
    std::map<std::string, std::shared_ptr<MappedSegment>> mapped_;    // by name
    std::deque<std::shared_ptr<MappedSegment>> order_;                // the one to be looked at next is first
    std::map<std::string, std::weak_ptr<const MappedFile>> slabs_;    // by the name of the file
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SEGMENT_READER_HPP
