// A request, from the moment when it is made until its answer was consumed, and the threads that wait for one. Sends and
// receives nothing.
#ifndef TR_MMAP_PENDING_HPP
#define TR_MMAP_PENDING_HPP

#include "macros_off.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "clock.hpp"
#include "pool.hpp"
#include "protocol.hpp"
#include "session_resources.hpp"
#include "tensor.hpp"

namespace tr {
namespace detail {

/// A number of this thread that no other thread gets, not even after this one has ended.
inline std::uint64_t mark_of_thread() {
    static std::atomic<std::uint64_t> last{0};
    thread_local const std::uint64_t mark = ++last;
    return mark;
}

/// A response, and views of its tensors, which hold the leases.
struct Result {
    Response response;
    std::vector<Tensor> tensors = {};
};

/// Called once with the outcome of a request: a result, or null and the error. Does not throw, and uses no session.
using Settle = std::function<void(Result* result, const std::exception_ptr& error)>;

/// One request. The mutex of its session's flow guards all fields that change.
struct Pending {
    std::string command;
    bool has_tensors = true;  // whether its result's tensors are wanted
    std::uint32_t seq = 0;    // its number; 0 until it is sent
    std::uint64_t order = 0;  // how many requests of the session were sent before it
    std::shared_ptr<WorkerHandle> worker = nullptr;     // that it was sent to
    std::vector<SegmentPool::SegmentPtr> held = {};     // this side's segments that only it names
    std::optional<Result> result = {};                  // its outcome: this, or the next
    std::exception_ptr error = {};
    bool is_abandoned = false;  // no caller waits for the answer any more; it is dropped when it comes

    // Of a request whose result any thread may take.
    std::uint64_t asker = 0;   // marks the thread that has made it
    bool is_aside = false;     // a limit of the system prevented receiving its tensors: ``error`` says which
    bool is_lost = false;      // the worker has ended before it responded
    bool is_given_up = false;  // lost, and its asker has started a new worker: its next request replaces this one

    // Of a request whose result comes as a future.
    Settle settle = {};
    Clock::time_point deadline = {};
    double timeout_ms = 0;

    /// Whether a future waits for its outcome.
    bool is_awaited() const { return settle && !is_abandoned && !is_done(); }

    bool is_done() const { return result.has_value() || error; }
};
using PendingPtr = std::shared_ptr<Pending>;

/// A thread that waits while another one consumes the answers.
struct Waiter {
    enum class For { ANSWER, ROOM, ALL, ROLE };  // to one request; that one more may be sent; to all; to consume itself

    For what;
    const Pending* pending = nullptr;
    bool is_called = false;
    std::condition_variable called = {};

    void call() {
        is_called = true;
        called.notify_one();
    }
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_PENDING_HPP
