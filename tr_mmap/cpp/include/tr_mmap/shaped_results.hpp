// What a result is to its caller: a text, a tensor, several tensors, values by name. Waits for nothing.
#ifndef TR_MMAP_SHAPED_RESULTS_HPP
#define TR_MMAP_SHAPED_RESULTS_HPP

#include "macros_off.hpp"

#include <string>
#include <utility>
#include <vector>

#include "dispatcher.hpp"
#include "errors.hpp"
#include "named_values.hpp"
#include "pending.hpp"
#include "protocol.hpp"
#include "tensor.hpp"
#include "values.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

inline bool has_names(const Result& result) { return result.response.form == wire::form_named; }

inline std::string result_text(Result result) { return std::move(result.response.result); }

/// The error for a result that is not what its caller wanted.
inline UnexpectedResponse unexpected(const Result& result, const std::string& lack) {
    const Response& response = result.response;
    return UnexpectedResponse("the response to '" + response.command + "' has " + lack + "; its text is '" +
                                  response.result.substr(0, 200) + "'" +
                                  (response.message.empty() ? "" : " (" + response.message + ")"),
                              response.result);
}

/// The result's tensors, of which there must be one or more.
inline std::vector<Tensor> tensors_of(Result result) {
    if (result.tensors.empty()) throw unexpected(result, "no tensor");
    return std::move(result.tensors);
}

inline Values values_of(Result result) {
    if (!has_names(result)) throw unexpected(result, "no values by name");
    return values_of_text(result.response.result, result.tensors);
}

/// How the result of a future is not one tensor; "" if it is.
inline std::string why_no_tensor(const Result& result, const char* several, const char* named) {
    if (has_names(result)) return std::string("the response has values by name; ") + named;
    if (result.tensors.size() < 2) return "";
    return "the response has " + std::to_string(result.tensors.size()) + " tensors; " + several;
}

/// The only tensor of a future's result.
inline Tensor future_tensor(Result result) {
    const std::string why =
        why_no_tensor(result, "request them with submit_tensors()", "request them with submit_values()");
    if (!why.empty()) throw UnexpectedResponse(why, result.response.result);
    return tensors_of(std::move(result)).front();
}

/// The only tensor of a result; one that is something else can still be taken.
inline Tensor only_tensor_of(Dispatcher& dispatcher, Result result) {
    const std::string why =
        why_no_tensor(result, "take them with wait_for_tensors()", "take them with wait_for_values()");
    if (!why.empty()) {
        const std::string text = result.response.result;
        dispatcher.put_back(std::move(result));
        throw UnexpectedResponse(why, text);
    }
    return tensors_of(std::move(result)).front();
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SHAPED_RESULTS_HPP
