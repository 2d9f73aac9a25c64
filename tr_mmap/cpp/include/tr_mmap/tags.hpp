// The controller's tags: names under which tensors stay until sent again, dropped, or the session ends.
#ifndef TR_MMAP_TAGS_HPP
#define TR_MMAP_TAGS_HPP

#include "macros_off.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pool.hpp"
#include "protocol.hpp"
#include "system.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// Which segment carries which tag, and which tags are not yet announced to the worker.
///
/// ``<tag>.tsr`` is a hard link to the segment that carries the tag. A tag counts as announced when a request was sent that
/// announces it: the worker takes the requests in the order in which they are sent, and a new worker is told all tags.
class Tags {
public:
    using SegmentPtr = SegmentPool::SegmentPtr;

    /// @param release releases a segment as soon as the worker cannot read it any more.
    Tags(std::string directory, SegmentPool& pool, std::function<void(const SegmentPtr&)> release)
        : directory_(std::move(directory)), pool_(pool), release_(std::move(release)) {}

    /// Let ``tag`` name ``segment``. The caller's hold of the segment becomes the tag's.
    void put(const std::string& tag, const SegmentPtr& segment) {
        const auto found = segments_.find(tag);
        const SegmentPtr previous = found == segments_.end() ? nullptr : found->second;
        if (previous != segment) {  // else the file of that tag is a link to it already
            try {
                directory_.check();
                replace_by_link(segment->path, path_of(tag));
            } catch (...) {
                pool_.release(segment);
                throw;
            }
        }
        segments_[tag] = segment;
        unannounced_[tag] = segment->seq;
        if (previous) release_(previous);
    }

    /// Forget a tag.
    ///
    /// @throws MissingTag there is no such tag.
    void drop(const std::string& tag) {
        const auto found = segments_.find(tag);
        if (found == segments_.end()) {
            std::string known;
            for (const auto& each : segments_) known += (known.empty() ? "" : ", ") + each.first;
            if (known.empty()) known = "none";
            throw MissingTag("there is no tensor with the tag '" + tag + "'; sent are: " + known, tag);
        }
        if (directory_.is_there()) unlink_file(path_of(tag));
        const SegmentPtr segment = found->second;
        segments_.erase(found);
        unannounced_[tag] = 0;
        release_(segment);
    }

    /// Announce in a request where the tensors of new tags are, and which tags no longer exist.
    void announce(Request& request) const {
        for (const auto& [tag, seq] : unannounced_) {
            if (seq) request.tensors.push_back({tag, segments_.at(tag)->name, seq});
            else request.drops.push_back(tag);
        }
    }

    /// A request was sent with what announce() has put into it; later changes are still to be announced.
    void announced() { unannounced_.clear(); }

    /// There is a new worker, which knows no tags.
    void announce_all_again() {
        unannounced_.clear();
        for (const auto& [tag, segment] : segments_) unannounced_[tag] = segment->seq;
    }

private:
    std::string path_of(const std::string& tag) const { return directory_.path() + "/" + tag + wire::tensor_suffix; }

    KnownDirectory directory_;
    SegmentPool& pool_;
    std::function<void(const SegmentPtr&)> release_;
    std::map<std::string, SegmentPtr> segments_;
    std::map<std::string, std::uint64_t> unannounced_;  // tag to seq, or 0 for a tag that was dropped
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_TAGS_HPP
