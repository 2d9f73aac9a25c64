// The controller's tags: names under which tensors stay until sent again, dropped, or the session ends.
#ifndef TR_MMAP_TAGS_HPP
#define TR_MMAP_TAGS_HPP

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

namespace tr {
namespace detail {

/// Which segment carries which tag, what its file is called, and what the worker has been told. ``<tag>.tsr`` is a hard
/// link to the segment that carries the tag. What was announced in a request counts as told when that is answered.
class Tags {
public:
    using SegmentPtr = SegmentPool::SegmentPtr;

    /// @param release lets go of a segment that the worker may be about to read.
    Tags(std::string directory, SegmentPool& pool, std::function<void(const SegmentPtr&)> release)
        : directory_(std::move(directory)), pool_(pool), release_(std::move(release)) {}

    /// Let ``tag`` mean ``segment``, of which the caller's hold passes to the tag.
    void put(const std::string& tag, const SegmentPtr& segment) {
        const std::string temporary = path_of(tag) + "." + std::to_string(::getpid()) + ".tmp";
        try {
            unlink_file(temporary);
            if (::link(segment->path.c_str(), temporary.c_str()) != 0) throw SystemError(temporary, errno);
            rename_file(temporary, path_of(tag));
        } catch (...) {
            unlink_file(temporary);
            pool_.release(segment);
            throw;
        }
        const SegmentPtr previous = std::exchange(segments_[tag], segment);
        untold_[tag] = segment->seq;
        if (previous) release_(previous);
        // Where both are links to one file already, rename does nothing and leaves both.
        if (previous == segment) unlink_file(temporary);
    }

    /// Forget a tag.
    ///
    /// @throws MissingTag there is no such tag.
    void drop(const std::string& tag) {
        const auto found = segments_.find(tag);
        if (found == segments_.end()) {
            std::string known;
            for (const auto& each : segments_) known += (known.empty() ? "" : ", ") + each.first;
            throw MissingTag("no tensor goes by the tag '" + tag + "'; sent are: " + (known.empty() ? "none" : known), tag);
        }
        unlink_file(path_of(tag));
        const SegmentPtr segment = found->second;
        segments_.erase(found);
        untold_[tag] = 0;
        release_(segment);
    }

    /// Put into a request where new tags are, and which are gone.
    void tell(Request& request) const {
        for (const auto& [tag, seq] : untold_) {
            if (seq) request.tensors.push_back({tag, segments_.at(tag)->name, seq});
            else request.drops.push_back(tag);
        }
    }

    /// A request that did so was answered; what has changed since is still to be told.
    void told(const Request& request) {
        for (const TensorRef& ref : request.tensors) forget(ref.tag, ref.seq);
        for (const std::string& tag : request.drops) forget(tag, 0);
    }

    /// There is a new worker, which knows nothing.
    void tell_again() {
        untold_.clear();
        for (const auto& [tag, segment] : segments_) untold_[tag] = segment->seq;
    }

private:
    void forget(const std::string& tag, std::uint64_t seq) {
        const auto found = untold_.find(tag);
        if (found != untold_.end() && found->second == seq) untold_.erase(found);
    }
    std::string path_of(const std::string& tag) const { return directory_ + "/" + tag + ".tsr"; }

    std::string directory_;
    SegmentPool& pool_;
    std::function<void(const SegmentPtr&)> release_;
    std::map<std::string, SegmentPtr> segments_;
    std::map<std::string, std::uint64_t> untold_;  // tag to seq; 0 means dropped
};

}  // namespace detail
}  // namespace tr

#endif  // TR_MMAP_TAGS_HPP
