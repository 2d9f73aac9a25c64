// A session's requests whose caller waits, its tags, its loans.
#ifndef TR_MMAP_SESSION_CALLS_HPP
#define TR_MMAP_SESSION_CALLS_HPP

#include "macros_off.hpp"

#include <string>
#include <utility>
#include <vector>

#include "dispatcher.hpp"
#include "dtype.hpp"
#include "identifiers.hpp"
#include "named_values.hpp"
#include "pool.hpp"
#include "protocol.hpp"
#include "session_state.hpp"
#include "shape.hpp"
#include "shaped_results.hpp"
#include "tensor.hpp"
#include "values.hpp"
#include "wire.hpp"

namespace tr {

inline constexpr double DEFAULT_TIMEOUT_MS = wire::default_timeout_ms;

namespace detail {

class SessionCalls : public SessionState {
public:
    // -- text ---------------------------------------------------------------------------------------------------------

    /// Send a request; its response is taken with a wait_for_… or read_response(). As many as
    /// SessionOptions::max_in_flight may be sent before the first is answered; then this waits until one is.
    ///
    /// @throws BadMessage there is no command in it.
    /// @throws ResponseTimeout no earlier request was answered in time; this one is not sent.
    /// @throws Busy as many are in flight, and the session does not wait.
    void send_request(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        const Command command = parse_command(message);
        in([&](Dispatcher& each) { each.send_public(command, timeout_ms); });
    }

    /// Take the response's text if there is one; "" if not. new_response() tells that from an empty text.
    std::string read_response() const {
        return in([](Dispatcher& each) { return each.take_text_now(); });
    }

    /// Take the next response's text.
    std::string wait_for_response(double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return in([&](Dispatcher& each) { return each.take(timeout_ms, false).response.result; });
    }

    /// send_request() and wait_for_response() in one call, for the same request. Arguments by name are for a handler that
    /// takes them.
    std::string fetch_response(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return call(asked(message), timeout_ms, false).response.result;
    }
    std::string fetch_response(const std::string& message, const Values& arguments,
                               double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return call(asked(message, arguments), timeout_ms, false).response.result;
    }

    // -- tensors ------------------------------------------------------------------------------------------------------

    /// Send a tensor under a tag, which names it until the tag is sent again or dropped, or the session ends. The
    /// tensor is copied once into shared memory. A loan is not copied, and is read-only from then on.
    ///
    /// @param tag at most 128 of A-Z a-z 0-9 _ . -
    /// @throws BadTag, OutOfSpace (the tag keeps what it had).
    void send_tensor(const Tensor& tensor, const std::string& tag) const {
        check_tag(tag);
        in([&](Dispatcher& each) { each.send_tensor(tensor, tag); });
    }

    /// Forget a tag and give its memory back.
    ///
    /// @throws MissingTag there is no such tag.
    void drop_tensor(const std::string& tag) const {
        in([&](Dispatcher& each) { each.drop_tensor(tag); });
    }

    /// Take the next response's tensor: a read-only view of shared memory, valid for as long as you keep it.
    ///
    /// @throws UnexpectedResponse the response has no tensor, or several: those can still be taken.
    Tensor wait_for_tensor(double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return in([&](Dispatcher& each) { return only_tensor_of(each, each.take(timeout_ms, true)); });
    }

    /// Take the next response's tensors, in order.
    std::vector<Tensor> wait_for_tensors(double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return in([&](Dispatcher& each) { return tensors_of(each.take(timeout_ms, true)); });
    }

    /// send_request() and wait_for_tensor() in one call, for the same request.
    Tensor fetch_tensor(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate(message, timeout_ms);
    }
    std::vector<Tensor> fetch_tensors(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return tensors_of(call(asked(message), timeout_ms, true));
    }
    std::vector<Tensor> fetch_tensors(const std::string& message, const Values& arguments,
                                      double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return tensors_of(call(asked(message, arguments), timeout_ms, true));
    }

    /// Send tensors, request a command on them, and take its result, in one call. The tensors get tags that only this
    /// call uses; the tags follow the message's words.
    Tensor calculate(const std::string& message, const std::vector<Tensor>& tensors,
                     double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_asked(asked(message, tensors), timeout_ms);
    }
    Tensor calculate(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_asked(asked(message), timeout_ms);
    }
    Tensor calculate(const std::string& message, const Tensor& a, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_asked({parse_command(message), {a}}, timeout_ms);
    }
    Tensor calculate(const std::string& message, const Tensor& a, const Tensor& b,
                     double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_asked({parse_command(message), {a, b}}, timeout_ms);
    }
    Tensor calculate(const std::string& message, const Tensor& a, const Tensor& b, const Tensor& c,
                     double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_asked({parse_command(message), {a, b, c}}, timeout_ms);
    }
    Tensor calculate(const std::string& message, const Values& arguments, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return calculate_asked(asked(message, arguments), timeout_ms);
    }

    // -- values by name -----------------------------------------------------------------------------------------------

    /// Take the next response's values by name: what the handler has returned as a dict.
    ///
    /// @throws UnexpectedResponse the response is something else.
    Values wait_for_values(double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return in([&](Dispatcher& each) { return values_of(each.take(timeout_ms, true)); });
    }

    /// Send a request, with tensors, or with arguments by name, and take the values by name of its result, in one call.
    Values fetch_values(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return values_of(call(asked(message), timeout_ms, true));
    }
    Values fetch_values(const std::string& message, const std::vector<Tensor>& tensors,
                        double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return values_of(call(asked(message, tensors), timeout_ms, true));
    }
    Values fetch_values(const std::string& message, const Values& arguments,
                        double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return values_of(call(asked(message, arguments), timeout_ms, true));
    }

    /// A loan: a tensor of undefined content in shared memory, which is sent without a copy. Fill it and send it; after
    /// that it is read-only here, because readers use it. Take another loan for the next tensor.
    ///
    /// @throws OutOfSpace no room.
    template <class T>
    Tensor empty(const Shape& shape) const {
        return empty(shape, dtype_of<T>());
    }
    Tensor empty(const Shape& shape, DType dtype = DType::FP32) const {
        return in([&](Dispatcher& each) { return each.empty(shape, dtype); });
    }

    /// What this side holds in shared memory.
    PoolStats stats() const {
        return in([](Dispatcher& each) { return each.stats(); });
    }

protected:
    using SessionState::SessionState;
    ~SessionCalls() = default;

    /// A request, and the tensors that go with it; those of the caller.
    struct Asked {
        Command command;
        TensorRefs tensors = {};
    };
    static Asked asked(const std::string& message) { return {parse_command(message)}; }
    static Asked asked(const std::string& message, const std::vector<Tensor>& tensors) {
        return {parse_command(message), {tensors.begin(), tensors.end()}};
    }
    static Asked asked(const std::string& message, const Values& arguments) {
        Asked result;
        result.command = named_command(message, arguments, result.tensors);
        return result;
    }

private:
    Result call(const Asked& what, double timeout_ms, bool has_tensors) const {
        return in([&](Dispatcher& each) { return each.call(what.command, what.tensors, timeout_ms, has_tensors); });
    }

    Tensor calculate_asked(const Asked& what, double timeout_ms) const {
        return in([&](Dispatcher& each) {
            return only_tensor_of(each, each.call(what.command, what.tensors, timeout_ms, true));
        });
    }
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SESSION_CALLS_HPP
