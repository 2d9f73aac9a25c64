// The result of a request that was submitted: a std::future that can be cancelled.
#ifndef TR_MMAP_FUTURE_HPP
#define TR_MMAP_FUTURE_HPP

#include "macros_off.hpp"

#include <future>
#include <memory>
#include <utility>

#include "dispatcher.hpp"
#include "pending.hpp"

namespace tr {

/// What PythonSession::submit() returns. It may be stored as a std::future too, which cannot be cancelled.
template <class T>
class Future : public std::future<T> {
public:
    Future() = default;
    Future(std::future<T> result, const std::shared_ptr<detail::Dispatcher>& session, const detail::PendingPtr& request)
        : std::future<T>(std::move(result)), session_(session), request_(request) {}

    /// Cancel the request. If that succeeds, get() throws RequestCancelled, at once.
    ///
    /// @param kill_running if the worker's handler was called already, end the worker, and start another one. Other
    ///     requests of the session that are in flight get WorkerDied. Without it, a handler that was called may notice the
    ///     wish (`server.cancelled()`), and end with RequestCancelled.
    /// @returns whether it was cancelled by this object; false if its handler was called, or if it has an outcome.
    /// @throws SystemLimit, OutOfSpace, … the request is cancelled, and the other worker cannot be started.
    bool cancel(bool kill_running = false) {
        const auto session = session_.lock();
        const auto request = request_.lock();
        if (!is_cancelled_ && session && request) is_cancelled_ = session->cancel(request, kill_running);
        return is_cancelled_;
    }

private:
    // Weak: a future may outlive its session, and does not keep the worker's end of it.
    std::weak_ptr<detail::Dispatcher> session_;
    std::weak_ptr<detail::Pending> request_;
    bool is_cancelled_ = false;
};

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_FUTURE_HPP
