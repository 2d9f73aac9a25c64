// The requests of a session that are in flight, and the threads that wait for something about them. Sends and takes no
// message: flow.hpp and answers.hpp do. Safe for threads; never used in a fork's child.
//
// A thread may hold two things. *The mutex* guards all fields, the pool and the tags; no thread waits for another process
// while it holds the mutex. *The role of the consumer*: only the thread that has it takes answers from the worker. Whoever
// waits for an answer takes the role if it is free, and then deals with the answers to the requests of all threads, until
// its own is there. If nobody waits and there are futures, a thread of the session takes the role: see futures.hpp.
//
// A request is in in_flight_ from the moment before it is sent until its answer was consumed, also if its caller has given
// it up: the worker may read its tensors until then, and its answer takes a slot of the ring.
#ifndef TR_MMAP_IN_FLIGHT_HPP
#define TR_MMAP_IN_FLIGHT_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "errors.hpp"
#include "options.hpp"
#include "pending.hpp"
#include "pool.hpp"
#include "protocol.hpp"
#include "results.hpp"
#include "session_resources.hpp"
#include "tags.hpp"
#include "waiting.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

using Lock = std::unique_lock<std::mutex>;

class InFlight {
public:
    using Handle = std::shared_ptr<WorkerHandle>;

    InFlight(const std::string& session_id, const SessionOptions& options, const std::string& place)
        : options_(options),
          resources_(session_id, options, place, changed_, [this] { pause(); }),
          tags_(resources_.directory(), resources_.pool(), [this](const auto& segment) { release_later(segment); }) {}
    InFlight(const InFlight&) = delete;
    InFlight& operator=(const InFlight&) = delete;

    /// The session's resources; its directory and its worker may be used without the mutex.
    const SessionResources& resources() const noexcept { return resources_; }
    bool is_closed() const noexcept { return is_closed_; }

    /// @throws SessionNotStarted there is no worker.
    Handle worker() const {
        if (is_closed_) throw_closed();
        Handle result = resources_.worker();
        if (!result) throw SessionNotStarted("session '" + resources_.session_id() + "'" + wire::no_worker);
        return result;
    }

protected:
    ~InFlight() = default;

    /// A call's deadline, what its caller gave for it, and the worker that it talks to.
    struct Wait {
        Clock::time_point deadline;
        double timeout_ms;
        Handle worker;
    };

    /// Holds the role of the consumer for a scope. Made and destroyed with the mutex held, when is_consumed_ is false.
    class Role {
    public:
        Role(InFlight& owner, Lock& lock) : owner_(owner), lock_(lock) { owner.is_consumed_ = true; }
        Role(const Role&) = delete;
        Role& operator=(const Role&) = delete;
        ~Role() {
            if (!lock_.owns_lock()) lock_.lock();
            owner_.is_consumed_ = false;
            owner_.pass_on();
        }

    private:
        InFlight& owner_;
        Lock& lock_;
    };

    static Clock::time_point forever() { return deadline_in(std::numeric_limits<double>::infinity()); }

    // -- waiting ---------------------------------------------------------------------------------------------------

    /// Wait until no other thread consumes. With the mutex held.
    void wait_for_role(Lock& lock) {
        Waiter waiter{Waiter::For::ROLE};
        while (is_consumed_) rest(lock, waiter, forever());
    }

    /// Wait until a thread calls this one, or until the deadline.
    void rest(Lock& lock, Waiter& waiter, Clock::time_point deadline) {
        waiter.is_called = false;
        const auto place = waiters_.insert(waiter.what == Waiter::For::ROLE ? waiters_.begin() : waiters_.end(), &waiter);
        waiter.called.wait_until(lock, deadline, [&] { return waiter.is_called; });
        waiters_.erase(place);
    }

    /// Let one of those that wait take the role, if it is free.
    void pass_on() {
        if (is_consumed_) return;
        for (Waiter* const each : waiters_) {
            if (!each->is_called) return each->call();
        }
        if (waiters_.empty() && futures_ > 0) unattended_.notify_one();
    }

    /// Call all that wait, because nobody waits in a session that is closed.
    void call_all() {
        for (Waiter* const each : waiters_) each->call();
    }

    // -- outcomes --------------------------------------------------------------------------------------------------

    /// Call settle() of requests that have their outcome now. The mutex is released meanwhile.
    void settle(Lock& lock, const std::vector<PendingPtr>& done) {
        lock.unlock();
        for (const PendingPtr& each : done) {
            if (each->settle) each->settle(each->result ? &*each->result : nullptr, each->error);
        }
        lock.lock();
    }

    /// A request has its outcome: it is not in flight any more. Whoever waits for that is called. Returns whether
    /// settle() is to be called.
    bool finish(Pending& pending) {
        in_flight_.erase(pending.seq);
        for (const auto& segment : std::exchange(pending.held, {})) resources_.pool().release(segment);
        release_left();
        bool has_called_for_room = false;
        for (Waiter* const each : waiters_) {
            if (each->is_called) continue;
            const bool is_for_room = each->what == Waiter::For::ROOM && !has_called_for_room;
            has_called_for_room |= is_for_room;
            const bool is_for_all = each->what == Waiter::For::ALL && in_flight_.empty();
            if (is_for_room || is_for_all || (each->what == Waiter::For::ANSWER && each->pending == &pending)) each->call();
        }
        if (!pending.settle || pending.is_abandoned || pending.is_aside) return false;
        --futures_;
        return true;
    }

    /// The worker may release the tensors of a response that was put aside, and of those after it.
    void put_in(Pending& pending) {
        pending.is_aside = false;
        if (--asides_ == 0 && pending.worker == resources_.worker()) pending.worker->channel->all_consumed();
    }

    /// Give all requests in flight the same outcome. With the role.
    void fail_all(Lock& lock, const std::exception_ptr& error, bool is_lost) {
        std::vector<PendingPtr> done;
        while (!in_flight_.empty()) {
            const PendingPtr pending = in_flight_.begin()->second;
            pending->error = error;
            pending->is_lost = is_lost;
            if (finish(*pending)) done.push_back(pending);
        }
        for (const PendingPtr& each : std::exchange(aside_futures_, {})) {
            each->error = error;  // its tensors went with the worker
            each->result.reset();
            each->is_aside = false;
            --futures_;
            done.push_back(each);
        }
        settle(lock, done);
    }

    // -- how a wait fails ------------------------------------------------------------------------------------------

    [[noreturn]] void throw_closed() const { std::rethrow_exception(closed_error()); }

    std::exception_ptr closed_error() const {
        return std::make_exception_ptr(
            SessionNotStarted("session '" + resources_.session_id() + "'" + wire::closed_meanwhile));
    }

    /// The error for a request that has no answer in time, or was not sent in time. The mutex is released meanwhile.
    ResponseTimeout late_error(Lock& lock, const Handle& worker, const Pending& pending, double timeout_ms) {
        const bool is_sent = pending.seq != 0;
        std::optional<std::uint64_t> order;
        std::optional<std::string> other;
        if (is_sent) order = pending.order - worker->sent_before;
        else other = "";
        const Pending* const first = oldest();
        if (first && (!is_sent || first->order < pending.order)) other = first->command;
        lock.unlock();
        const ResponseTimeout error = unanswered(*worker, pending.command, timeout_ms, order, other);
        lock.lock();
        return error;
    }

    const Pending* oldest() const {
        const Pending* first = nullptr;
        for (const auto& each : in_flight_) {
            if (!first || each.second->order < first->order) first = each.second.get();
        }
        return first;
    }

    /// Release a tag's segment; not before all requests are answered that were sent before, because the worker may read
    /// it until then.
    void release_later(const SegmentPool::SegmentPtr& segment) {
        left_.emplace_back(sent_, segment);
        release_left();
    }

    void release_left() {
        const Pending* const first = oldest();
        while (!left_.empty() && (!first || left_.front().first <= first->order)) {
            resources_.pool().release(left_.front().second);
            left_.pop_front();
        }
    }

    /// Called by the pool while it waits for room, with the mutex held.
    virtual void pause() = 0;

    const SessionOptions options_;
    const std::shared_ptr<Signal> changed_ = std::make_shared<Signal>();  // a public request was sent, or a worker ended
    mutable std::mutex mutex_;
    std::atomic<bool> is_closed_{false};  // never reset; all waits end
    std::atomic<int> is_exiting_{0};      // threads in request_exit()
    SessionResources resources_;
    Tags tags_;
    std::map<std::uint32_t, PendingPtr> in_flight_;  // by number
    std::list<Waiter*> waiters_;
    bool is_consumed_ = false;               // a thread has the role of the consumer
    int asides_ = 0;                         // requests whose tensors a limit prevented from being received
    std::vector<PendingPtr> aside_futures_;  // of these, those whose results come as futures
    std::uint64_t sent_ = 0;                 // how many requests were sent
    int futures_ = 0;                        // requests whose futures have no outcome yet
    std::condition_variable unattended_;     // wakes the thread of the futures
    bool is_attending_ = false;              // that thread has the role
    std::atomic<bool> is_recalled_{false};   // it is to look again at what it waits for

private:
    // What tags have left, and how many requests were sent before that.
    std::deque<std::pair<std::uint64_t, SegmentPool::SegmentPtr>> left_;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_IN_FLIGHT_HPP
