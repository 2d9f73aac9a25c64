// A session's requests whose results come as futures.
#ifndef TR_MMAP_SESSION_FUTURES_HPP
#define TR_MMAP_SESSION_FUTURES_HPP

#include "macros_off.hpp"

#include <exception>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dispatcher.hpp"
#include "future.hpp"
#include "pending.hpp"
#include "protocol.hpp"
#include "session_calls.hpp"
#include "shaped_results.hpp"
#include "tensor.hpp"
#include "values.hpp"

namespace tr {
namespace detail {

class SessionFutures : public SessionCalls {
public:
    /// Send tensors and a request on them, as calculate() does, and return at once; the result comes as a future. As
    /// many as SessionOptions::max_in_flight requests may be sent before the first is answered; then this waits until
    /// one is, or throws Busy. The futures become ready in the order in which the worker answers.
    ///
    /// What goes wrong before the request is sent is thrown here; what comes after that is the future's. It gets
    /// ResponseTimeout ``timeout_ms`` after the call, WorkerDied if the worker ends, SessionNotStarted if the session
    /// does; so it always becomes ready. Future::cancel() cancels the request. If the future is destroyed before it is
    /// ready, the request goes on and its result is dropped.
    Future<Tensor> submit(const std::string& message, const std::vector<Tensor>& tensors,
                          double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<Tensor>(asked(message, tensors), timeout_ms, true, future_tensor);
    }
    Future<Tensor> submit(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<Tensor>(asked(message), timeout_ms, true, future_tensor);
    }
    Future<Tensor> submit(const std::string& message, const Tensor& a,
                          double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<Tensor>({parse_command(message), {a}}, timeout_ms, true, future_tensor);
    }
    Future<Tensor> submit(const std::string& message, const Tensor& a, const Tensor& b,
                          double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<Tensor>({parse_command(message), {a, b}}, timeout_ms, true, future_tensor);
    }
    Future<Tensor> submit(const std::string& message, const Tensor& a, const Tensor& b, const Tensor& c,
                          double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<Tensor>({parse_command(message), {a, b, c}}, timeout_ms, true, future_tensor);
    }
    Future<Tensor> submit(const std::string& message, const Values& arguments,
                          double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<Tensor>(asked(message, arguments), timeout_ms, true, future_tensor);
    }

    /// The same for the response's text.
    Future<std::string> submit_response(const std::string& message, const std::vector<Tensor>& tensors,
                                        double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<std::string>(asked(message, tensors), timeout_ms, false, result_text);
    }
    Future<std::string> submit_response(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<std::string>(asked(message), timeout_ms, false, result_text);
    }
    Future<std::string> submit_response(const std::string& message, const Values& arguments,
                                        double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<std::string>(asked(message, arguments), timeout_ms, false, result_text);
    }

    /// The same for a response of several tensors, in order.
    Future<std::vector<Tensor>> submit_tensors(const std::string& message, const std::vector<Tensor>& tensors,
                                               double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<std::vector<Tensor>>(asked(message, tensors), timeout_ms, true, tensors_of);
    }
    Future<std::vector<Tensor>> submit_tensors(const std::string& message,
                                               double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<std::vector<Tensor>>(asked(message), timeout_ms, true, tensors_of);
    }
    Future<std::vector<Tensor>> submit_tensors(const std::string& message, const Values& arguments,
                                               double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<std::vector<Tensor>>(asked(message, arguments), timeout_ms, true, tensors_of);
    }

    /// The same for values by name.
    Future<Values> submit_values(const std::string& message, const std::vector<Tensor>& tensors,
                                 double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<Values>(asked(message, tensors), timeout_ms, true, values_of);
    }
    Future<Values> submit_values(const std::string& message, double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<Values>(asked(message), timeout_ms, true, values_of);
    }
    Future<Values> submit_values(const std::string& message, const Values& arguments,
                                 double timeout_ms = DEFAULT_TIMEOUT_MS) const {
        return submit_asked<Values>(asked(message, arguments), timeout_ms, true, values_of);
    }

protected:
    using SessionCalls::SessionCalls;
    ~SessionFutures() = default;

private:
    /// @param shape makes the future's value of the result, or throws.
    template <class T, class Shape>
    Future<T> submit_asked(const Asked& what, double timeout_ms, bool has_tensors, Shape shape) const {
        const auto promise = std::make_shared<std::promise<T>>();
        const auto settle = [promise, shape](Result* result, const std::exception_ptr& error) noexcept {
            if (error) return promise->set_exception(error);
            try {
                promise->set_value(shape(std::move(*result)));
            } catch (...) {
                promise->set_exception(std::current_exception());
            }
        };
        return in([&](Dispatcher& each) {
            const PendingPtr pending = each.submit(what.command, what.tensors, timeout_ms, has_tensors, settle);
            return Future<T>(promise->get_future(), each.shared_from_this(), pending);
        });
    }
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SESSION_FUTURES_HPP
