// A session's object and the dispatcher that does its work while it is open, as threads and forked children find them.
#ifndef TR_MMAP_SESSION_STATE_HPP
#define TR_MMAP_SESSION_STATE_HPP

#include "macros_off.hpp"

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "dispatcher.hpp"
#include "errors.hpp"
#include "fork_safety.hpp"
#include "identifiers.hpp"
#include "launch.hpp"
#include "options.hpp"
#include "wire.hpp"
#include "workspace.hpp"

namespace tr {
namespace detail {

class SessionState {
public:
    SessionState(const SessionState&) = delete;
    SessionState& operator=(const SessionState&) = delete;

protected:
    SessionState(const std::string& script_path, std::string session_id, bool quiet_mode, SessionOptions options)
        : script_path_(resolved_script(script_path)),
          session_id_(std::move(session_id)),
          options_(resolved(std::move(options))),
          place_(Workspace::place()),
          is_quiet_(quiet_mode) {
        check_session_id(session_id_);
    }
    ~SessionState() = default;

    /// Whether this process is a forked child of the one that has started the session.
    bool is_of_other_process() const noexcept {
        const pid_t owner = owner_;
        return owner != 0 && owner != ForkState::pid();
    }

    /// Throw in a fork's child, before anything is locked: a thread of its parent may have held the lock.
    void check_process() const {
        if (!is_of_other_process()) return;
        throw SessionNotStarted("session '" + session_id_ + "'" + wire::of_parent);
    }

    /// Null in a fork's child.
    std::shared_ptr<Dispatcher> dispatcher_or_null() const {
        if (is_of_other_process()) return nullptr;
        const std::lock_guard<std::mutex> lock(pointer_mutex_);
        return dispatcher_;
    }
    std::shared_ptr<WorkerHandle> worker_or_null() const {
        const auto dispatcher = dispatcher_or_null();
        return dispatcher ? dispatcher->resources().worker() : nullptr;
    }

    /// Call an action with the open session's dispatcher, which is kept alive meanwhile. Afterwards this object is not
    /// touched: another thread may have destroyed it, at the end of the process say.
    template <class Action>
    auto in(Action action) const -> decltype(action(std::declval<Dispatcher&>())) {
        check_process();
        const auto dispatcher = dispatcher_or_null();
        if (!dispatcher) throw SessionNotStarted("session '" + session_id_ + "'" + wire::not_started);
        try {
            return action(*dispatcher);
        } catch (const SessionNotStarted&) {
            if (dispatcher->is_closed()) dispatcher->outlast_process_end();
            throw;
        }
    }

    const std::string script_path_;
    const std::string session_id_;
    const SessionOptions options_;
    const std::string place_;  // of the workspace
    std::atomic<bool> is_quiet_;
    std::atomic<pid_t> owner_{0};       // the process that has started it; 0 if it is not started
    std::mutex life_mutex_;             // held by start(), and by the end of close()
    mutable std::mutex pointer_mutex_;  // guards dispatcher_; held for a moment
    std::shared_ptr<Dispatcher> dispatcher_;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SESSION_STATE_HPP
