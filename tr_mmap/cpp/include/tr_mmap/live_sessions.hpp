// The sessions that this process has open, so that a new session can replace one with the same id.
#ifndef TR_MMAP_LIVE_SESSIONS_HPP
#define TR_MMAP_LIVE_SESSIONS_HPP

#include "macros_off.hpp"

#include <sys/types.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dispatcher.hpp"
#include "errors.hpp"
#include "fork_safety.hpp"
#include "options.hpp"

namespace tr {
namespace detail {

class LiveSessions {
public:
    static void add(const std::shared_ptr<Dispatcher>& dispatcher) {
        // ForkState's mutex, because it is free in a forked child, whatever the parent's threads did.
        const std::lock_guard<std::mutex> lock(ForkState::mutex());
        std::vector<Entry> kept;
        for (Entry& each : entries()) {
            if (!each.dispatcher.expired() && each.pid == ForkState::pid()) kept.push_back(std::move(each));
        }
        kept.push_back({ForkState::pid(), dispatcher});
        entries() = std::move(kept);
    }

    /// The open sessions of this process.
    static std::vector<std::shared_ptr<Dispatcher>> all() {
        const std::lock_guard<std::mutex> lock(ForkState::mutex());
        std::vector<std::shared_ptr<Dispatcher>> result;
        for (const Entry& each : entries()) {
            if (each.pid != ForkState::pid()) continue;
            if (auto dispatcher = each.dispatcher.lock()) result.push_back(std::move(dispatcher));
        }
        return result;
    }

private:
    struct Entry {
        pid_t pid;
        std::weak_ptr<Dispatcher> dispatcher;
    };
    static std::vector<Entry>& entries() {
        static std::vector<Entry>& only = *new std::vector<Entry>;  // never destroyed: a session may be a static object
        return only;
    }
};

/// Claim a session for this process, in the workspace at that place.
///
/// @throws SessionInUse another process has it; or this one has, and ``options`` do not say to replace it.
inline std::shared_ptr<Dispatcher> open_session(const std::string& session_id, const SessionOptions& options,
                                                const std::string& place) {
    if (options.replace) {
        const std::string directory = Workspace::at(place).session_dir(session_id);
        for (const auto& each : LiveSessions::all()) {
            if (each->resources().directory() == directory) each->close();
        }
    }
    auto result = std::make_shared<Dispatcher>(session_id, options, place);
    LiveSessions::add(result);
    return result;
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_LIVE_SESSIONS_HPP
