// Requests in flight: how one is sent, and how the answers reach those who wait for them. Safe for threads; never used in
// a fork's child.
//
// A thread may hold two things. *The mutex* guards all fields, the pool and the tags; no thread waits for another process
// while it holds the mutex. *The role of the consumer*: only the thread that has it takes answers from the worker. Whoever
// waits for an answer takes the role if it is free, and then deals with the answers to the requests of all threads, until
// its own is there. If nobody waits and there are futures, a thread of the session takes the role: see futures.hpp.
//
// A request is in in_flight_ from the moment before it is sent until its answer was consumed, also if its caller has given
// it up: the worker may read its tensors until then, and its answer takes a slot of the ring.
#ifndef TR_MMAP_FLOW_HPP
#define TR_MMAP_FLOW_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
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

#include "channel.hpp"
#include "clock.hpp"
#include "pending.hpp"
#include "protocol.hpp"
#include "results.hpp"
#include "session_resources.hpp"
#include "tags.hpp"
#include "waiting.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

using Lock = std::unique_lock<std::mutex>;
using TensorRefs = std::vector<std::reference_wrapper<const Tensor>>;

class Flow {
public:
    using Handle = std::shared_ptr<WorkerHandle>;

    Flow(const std::string& session_id, const SessionOptions& options, const std::string& place)
        : options_(options),
          resources_(session_id, options, place, changed_, [this] { pause(); }),
          tags_(resources_.directory(), resources_.pool(), [this](const auto& segment) { release_later(segment); }) {}
    Flow(const Flow&) = delete;
    Flow& operator=(const Flow&) = delete;

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
    ~Flow() = default;

    /// A call's deadline, what its caller gave for it, and the worker that it talks to.
    struct Wait {
        Clock::time_point deadline;
        double timeout_ms;
        Handle worker;
    };

    /// Holds the role of the consumer for a scope. Made and destroyed with the mutex held, when is_consumed_ is false.
    class Role {
    public:
        Role(Flow& owner, Lock& lock) : owner_(owner), lock_(lock) { owner.is_consumed_ = true; }
        Role(const Role&) = delete;
        Role& operator=(const Role&) = delete;
        ~Role() {
            if (!lock_.owns_lock()) lock_.lock();
            owner_.is_consumed_ = false;
            owner_.pass_on();
        }

    private:
        Flow& owner_;
        Lock& lock_;
    };

    static Clock::time_point forever() { return deadline_in(std::numeric_limits<double>::infinity()); }

    // -- sending ---------------------------------------------------------------------------------------------------

    /// Send a request, as soon as there is room for one more.
    ///
    /// @param tensors published for this request only; their tags follow the command's words.
    void send(Lock& lock, const PendingPtr& pending, const Command& command, const TensorRefs& tensors,
              const Wait& wait) {
        const Place place(*this, lock, *pending, wait);
        try {
            store(lock, pending, command, tensors, wait);
            return;
        } catch (const OutOfSpace& error) {
            if (is_closed_) throw_closed();
            if (wait.worker->is_over()) throw_worker_died(lock, wait.worker);  // its end has ended the wait for room
            if (!has_consumed_any(lock) && !ask_for_room(lock, error, wait)) throw;
        }
        store(lock, pending, command, tensors, wait);
    }

    /// Ask the worker to release the memory that it keeps for later results; returns whether it has done so.
    bool ask_for_room(Lock& lock, const OutOfSpace& error, Wait wait) {
        if (error.is_budget || !in_flight_.empty() || resources_.worker() != wait.worker) return false;
        if (!is_waiting(wait.worker->channel->read_status())) return false;  // it has no results yet
        wait.deadline = std::min(wait.deadline, deadline_in(wire::release_timeout_ms));
        const auto pending = std::make_shared<Pending>();
        pending->command = wire::release_command;
        pending->has_tensors = false;
        try {
            store(lock, pending, {pending->command, ""}, {}, wait);
            await(lock, *pending, wait);
            return !pending->error;  // a worker of an earlier version responds with an error
        } catch (const ResponseTimeout&) {
        } catch (const WorkerDied&) {
        }
        if (!lock.owns_lock()) lock.lock();
        pending->is_abandoned = true;
        return false;
    }

    /// Throw unless a request can be sent to that worker now.
    void check_worker(Lock& lock, const Wait& wait) {
        if (is_closed_) throw_closed();
        if (resources_.worker() != wait.worker || wait.worker->is_over()) throw_worker_died(lock, wait.worker);
        if (is_exiting_) {
            throw SessionNotStarted("session '" + resources_.session_id() + "' is about to end: please_exit() runs");
        }
    }

    std::uint32_t next_seq() {
        do seq_ = seq_ % wire::max_message_seq + 1;
        while (in_flight_.count(seq_) != 0);  // one that was sent before the numbers began again
        return seq_;
    }

    // -- consuming -------------------------------------------------------------------------------------------------

    /// Wait for the outcome of a request that was sent.
    void await(Lock& lock, const Pending& pending, const Wait& wait) {
        consume_until(lock, [&] { return pending.is_done(); }, wait, Waiter::For::ANSWER, &pending);
        if (!pending.is_done()) throw_unanswered(lock, wait, pending);
    }

    /// Consume answers, or wait while another thread does, until ``until`` says so, or the time is over, or the worker.
    ///
    /// @param what of the events that call a waiter, the one which may let ``until`` be true.
    template <class Until>
    void consume_until(Lock& lock, Until until, const Wait& wait, Waiter::For what, const Pending* pending = nullptr) {
        Waiter waiter{what, pending};
        while (!until()) {
            if (!is_consumed_) {
                waiter.is_called = false;
                const Role role(*this, lock);
                consume(lock, wait.worker, until, wait.deadline);
                break;
            }
            if (is_closed_ || wait.worker->is_over() || Clock::now() >= wait.deadline) break;
            rest(lock, waiter, wait.deadline);
        }
        if (waiter.is_called) pass_on();  // it may have been called to take the role
    }

    /// Consume answers until ``until`` says so, or the time is over, or the worker. With the role.
    template <class Until>
    void consume(Lock& lock, const Handle& worker, Until until, Clock::time_point deadline) {
        while (!until()) {
            // First this, and then the look, so that what came just before the end is not missed.
            const bool is_last = is_closed_ || worker->is_over() || Clock::now() >= deadline;
            if (consume_next(lock, worker)) continue;
            if (is_last) return;
            lock.unlock();
            worker->channel->wait(deadline, [&] { return is_closed_ || worker->is_over() || is_recalled_; });
            lock.lock();
        }
    }

    /// Consume the answers that are there, unless another thread does.
    void poll(Lock& lock) {
        const Handle worker = resources_.worker();
        if (is_consumed_ || !worker || in_flight_.empty()) return;
        const Role role(*this, lock);
        try {
            while (consume_next(lock, worker)) continue;
        } catch (const SystemError&) {  // no descriptor is left, say: the message stays
        }
    }

    /// Consume the answers that are there; returns whether there were any, so that there may be room for tensors now.
    bool has_consumed_any(Lock& lock) {
        const std::size_t before = in_flight_.size();
        poll(lock);
        return in_flight_.size() < before;
    }

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

    // -- the worker's end ------------------------------------------------------------------------------------------

    /// Throw the error that says how the worker has ended. Forget it first, so that start() works again. A worker whose
    /// service has ended, and whose process lives on, is kept until start() or close() ends the process.
    [[noreturn]] void throw_worker_died(Lock& lock, const Handle& worker) {
        if (is_closed_) throw_closed();
        const WorkerDied error = bury(lock, worker);
        if (is_closed_) throw_closed();
        if (is_exiting_) throw SessionNotStarted("session '" + resources_.session_id() + "' was ended meanwhile");
        lock.unlock();
        throw error;
    }

    /// Forget a worker that is over, unless another thread has done so. The caller has not the role.
    WorkerDied bury(Lock& lock, const Handle& worker) {
        lock.unlock();
        const WorkerDied error = died_error(*worker, resources_.session_id());
        lock.lock();
        worker->give_up();  // so that the thread that has the role leaves it
        wait_for_role(lock);
        const Role role(*this, lock);
        if (resources_.worker() != worker || is_closed_) return error;
        if (worker->lives_on()) lose_requests(lock, worker, error);
        else forget_worker(lock, worker, error);
        return error;
    }

    /// Forget a worker that has ended; tags stay, for the next one. With the role.
    void forget_worker(Lock& lock, const Handle& worker, const WorkerDied& error) {
        lose_requests(lock, worker, error);
        lock.unlock();
        resources_.forget_worker();
        lock.lock();
        resources_.pool().reader_died();
        tags_.announce_all_again();
    }

    /// Take what a worker has answered before its end; whoever waits for another answer gets the error. With the role.
    void lose_requests(Lock& lock, const Handle& worker, const WorkerDied& error) {
        take_the_rest(lock, worker);
        const std::exception_ptr death = std::make_exception_ptr(error);
        note_death(death);
        fail_all(lock, death, true);  // before there is no worker: a thread that finds none finds the errors
        changed_->raise();
    }

    /// Consume the answers that a worker has left. With the role.
    void take_the_rest(Lock& lock, const Handle& worker) {
        try {
            while (consume_next(lock, worker)) continue;
        } catch (const TRException&) {  // there are no more
        }
    }

    /// Called with the mutex when a worker has ended, before it is forgotten.
    virtual void note_death(const std::exception_ptr& death) = 0;

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

    [[noreturn]] void throw_unanswered(Lock& lock, const Wait& wait, const Pending& pending) {
        if (is_closed_) throw_closed();
        lock.unlock();
        const bool has_left = wait.worker->is_over() || wait.worker->has_left();
        lock.lock();
        if (has_left) throw_worker_died(lock, wait.worker);
        throw late_error(lock, wait.worker, pending, wait.timeout_ms);
    }

    const Pending* oldest() const {
        const Pending* first = nullptr;
        for (const auto& each : in_flight_) {
            if (!first || each.second->order < first->order) first = each.second.get();
        }
        return first;
    }

    const SessionOptions options_;
    const std::shared_ptr<Signal> changed_ = std::make_shared<Signal>();  // a public request was sent, or a worker ended
    mutable std::mutex mutex_;
    std::atomic<bool> is_closed_{false};  // never reset; all waits end
    std::atomic<int> is_exiting_{0};      // threads in request_exit()
    SessionResources resources_;
    Tags tags_;
    std::map<std::uint32_t, PendingPtr> in_flight_;  // by number
    std::list<Waiter*> waiters_;
    bool is_consumed_ = false;             // a thread has the role of the consumer
    int asides_ = 0;                       // requests whose tensors a limit prevented from being received
    std::vector<PendingPtr> aside_futures_;  // of these, those whose results come as futures
    std::uint64_t sent_ = 0;               // how many requests were sent
    int futures_ = 0;                      // requests in flight whose results come as futures
    std::condition_variable unattended_;   // wakes the thread of the futures
    bool is_attending_ = false;            // that thread has the role
    std::atomic<bool> is_recalled_{false};  // it is to look again at what it waits for

private:
    /// A place among the requests in flight, from the moment when there is room for one more until it was sent, or was not.
    class Place {
    public:
        Place(Flow& owner, Lock& lock, const Pending& pending, const Wait& wait) : owner_(owner), lock_(lock) {
            const int most = owner.options_.max_in_flight;
            const auto is_room = [&] { return owner.in_flight_.size() + owner.places_ < static_cast<std::size_t>(most); };
            if (!is_room()) owner.poll(lock);
            if (!is_room() && owner.options_.at_limit == AtLimit::FAIL) {
                throw Busy(std::to_string(most) + " requests of session '" + owner.resources_.session_id() +
                               "' are in flight, as many as it may have (SessionOptions::max_in_flight); wait for one of "
                               "them, or let it wait (AtLimit::BLOCK)",
                           most);
            }
            owner.consume_until(lock, is_room, wait, Waiter::For::ROOM);
            if (!is_room()) owner.throw_unanswered(lock, wait, pending);
            ++owner.places_;
        }
        Place(const Place&) = delete;
        Place& operator=(const Place&) = delete;
        ~Place() {
            if (!lock_.owns_lock()) lock_.lock();
            --owner_.places_;
            for (Waiter* const each : owner_.waiters_) {  // if it was not sent, there is room for another one
                if (each->what != Waiter::For::ROOM || each->is_called) continue;
                each->call();
                break;
            }
        }

    private:
        Flow& owner_;
        Lock& lock_;
    };

    void store(Lock& lock, const PendingPtr& pending, const Command& command, const TensorRefs& tensors,
               const Wait& wait) {
        check_worker(lock, wait);
        Request request;
        request.command = command.command;
        request.parameters = command.parameters;
        request.timestamp = now_ms();
        std::vector<SegmentPool::SegmentPtr> arguments;
        try {
            std::vector<TensorRef> refs;
            for (const Tensor& tensor : tensors) {
                const std::string tag = wire::argument_tag_prefix + std::to_string(arguments.size());
                resources_.pool().set_latest(wait.deadline);
                arguments.push_back(resources_.pool().publish(tensor));
                refs.push_back({tag, arguments.back()->name, arguments.back()->seq});
                request.parameters += (request.parameters.empty() ? "" : " ") + tag;
            }
            // While publish() waits for room, other threads may send requests and tags, and the worker may end.
            check_worker(lock, wait);
            tags_.announce(request);
            request.tensors.insert(request.tensors.end(), refs.begin(), refs.end());
            request.seq = next_seq();
            in_flight_[request.seq] = pending;
            try {
                wait.worker->channel->send(request);
            } catch (...) {
                in_flight_.erase(request.seq);
                throw;
            }
        } catch (...) {
            if (!lock.owns_lock()) lock.lock();
            for (const auto& segment : arguments) resources_.pool().release(segment);
            throw;
        }
        pending->seq = request.seq;
        pending->order = sent_++;
        pending->worker = wait.worker;
        pending->held = std::move(arguments);
        tags_.announced();
        if (pending->settle) ++futures_;
    }

    /// Deal with the next answer, and take it; false if there is none. With the role. The mutex is released meanwhile.
    bool consume_next(Lock& lock, const Handle& worker) {
        Channel& channel = *worker->channel;
        if (!channel.has_message()) return false;
        Response response;
        std::exception_ptr fault;
        bool is_there = true;
        lock.unlock();
        try {
            const std::optional<std::string> raw = channel.peek();
            if (raw) response = decode_response(*raw);
            else is_there = false;
        } catch (const BadMessage&) {  // no other answer to that request will come
            fault = std::current_exception();
        } catch (...) {
            lock.lock();
            throw;
        }
        lock.lock();
        if (!is_there) return false;
        const std::uint64_t seq = fault ? channel.next_seq() : response.seq;
        const auto found = seq > wire::max_message_seq ? in_flight_.end() : in_flight_.find(static_cast<std::uint32_t>(seq));
        const PendingPtr pending = found == in_flight_.end() ? nullptr : found->second;
        bool is_to_settle = false;
        if (pending) {
            if (fault) pending->error = fault;
            else take_in(lock, *pending, std::move(response));
            is_to_settle = finish(*pending);
            if (pending->settle && pending->is_aside) {
                aside_futures_.push_back(pending);
                is_recalled_ = is_attending_;
                unattended_.notify_one();
            }
        }
        channel.advance(asides_ == 0);  // after the views have their leases
        if (is_to_settle) settle(lock, {pending});
        return true;
    }

    /// Make the outcome of a request of its response. The mutex is released meanwhile.
    void take_in(Lock& lock, Pending& pending, Response response) {
        if (response.error) {
            // The worker had no room for a result: release the memory that this side keeps for later tensors.
            if (response.error->needed_nbytes) resources_.pool().release_free();
            pending.error = remote_error(response.command, *response.error);
            return;
        }
        Result result{std::move(response)};
        std::exception_ptr error;
        bool may_be_received_later = false;
        if (pending.has_tensors && !pending.is_abandoned && !result.response.tensors.empty()) {
            lock.unlock();
            try {
                result.tensors = pending.worker->receive(result.response.tensors);
            } catch (const SystemError&) {  // no descriptor is left, say
                error = std::current_exception();
                may_be_received_later = true;
            } catch (const TRException&) {
                error = std::current_exception();
            } catch (...) {
                lock.lock();
                throw;
            }
            lock.lock();
        }
        pending.error = error;
        if (error && (!may_be_received_later || pending.is_abandoned)) return;
        if (error) {
            pending.is_aside = true;
            ++asides_;
        }
        pending.result = std::move(result);
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

    /// Called by the pool while it waits for room, with the mutex held: consume answers, because the worker may look at
    /// what they release, and let other threads run for a moment.
    void pause() {
        mutex_.unlock();
        sleep_s(0.001);
        Lock lock(mutex_);
        try {
            poll(lock);
        } catch (...) {
            if (!lock.owns_lock()) lock.lock();
            lock.release();  // the pool's caller has the mutex, whatever happens
            throw;
        }
        lock.release();
        if (is_closed_) throw_closed();
    }

    std::size_t places_ = 0;  // of requests that are about to be sent
    std::uint32_t seq_ = 0;
    // What tags have left, and how many requests were sent before that.
    std::deque<std::pair<std::uint64_t, SegmentPool::SegmentPtr>> left_;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_FLOW_HPP
