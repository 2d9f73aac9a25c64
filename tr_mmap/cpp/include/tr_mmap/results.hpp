// The errors that say why a request has no result. Does not wait for responses.
#ifndef TR_MMAP_RESULTS_HPP
#define TR_MMAP_RESULTS_HPP

#include "macros_off.hpp"

#include <cstdint>
#include <exception>
#include <optional>
#include <string>

#include "clock.hpp"
#include "errors.hpp"
#include "identity.hpp"
#include "numbers.hpp"
#include "protocol.hpp"
#include "session_resources.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// The error that a response tells.
inline std::exception_ptr remote_error(const std::string& command, const Failure& failure) {
    if (failure.kind == wire::failure_unknown_command) {
        return std::make_exception_ptr(UnknownCommand(failure.message, command, failure.type, failure.traceback));
    }
    if (failure.kind == wire::failure_cancelled) {
        return std::make_exception_ptr(RequestCancelled(failure.message, command, failure.type, failure.traceback));
    }
    std::string message = failure.message;
    if (failure.kind != wire::failure_bad_input) {
        message = "'" + command + "' failed in the worker: " + failure.type + ": " + failure.message;
        if (!failure.traceback.empty()) message += "\n\n" + failure.traceback;
    }
    if (failure.needed_nbytes && failure.free_nbytes) {
        return std::make_exception_ptr(RemoteOutOfSpace(message, command, failure.type, failure.traceback,
                                                        *failure.needed_nbytes, *failure.free_nbytes));
    }
    return std::make_exception_ptr(RemoteError(message, command, failure.type, failure.traceback));
}

/// The error of a request that was cancelled before its handler was called; in the worker's words.
inline std::exception_ptr cancelled_error(const std::string& command) {
    return std::make_exception_ptr(
        RequestCancelled("the request was cancelled before its handler was called", command, "RequestCancelled", ""));
}

/// A timeout in the text of an error.
inline std::string shown_ms(double ms) {
    if (!(ms < 1e15)) return "unlimited";
    return ms < 1000 ? format_real(ms == 0 ? 0.0 : ms, 'g', 4) : format_real(ms, 'f', 0);  // 0 has a sign, too
}

/// Note in a ResponseTimeout what the worker's process does. Returns that in words.
inline std::string note_state(ResponseTimeout& error, const WorkerHandle& worker) {
    error.pid = worker.process->identity().pid;
    error.state = state_of(error.pid);
    error.last_moved_ms = worker.channel->heartbeat_age_ms();
    std::string text = "process " + std::to_string(error.pid) + wire::process_is + error.state;
    if (error.last_moved_ms) text += wire::last_moved + format_real(*error.last_moved_ms / 1000, 'f', 1) + " s ago";
    return text;
}

/// The error for a response that has not come. It says what the worker does.
///
/// @param command of the request; "" if the caller has made none.
/// @param order how many requests were sent to the worker before this one; nothing if it was not sent.
/// @param other the command of the request that is under way, for which this one waits; "" if that is unknown; nothing if
///     it waits for none.
inline ResponseTimeout unanswered(const WorkerHandle& worker, const std::string& command, double timeout_ms,
                                  std::optional<std::uint64_t> order, std::optional<std::string> other) {
    ResponseTimeout found("", timeout_ms, command);
    const std::string state = note_state(found, worker);
    const std::string number = std::to_string(found.pid);
    const Status status = worker.channel->read_status();
    const bool is_taken_up = order && worker.channel->is_taken_up(*order);
    if (is_taken_up) other.reset();
    std::string taken = is_taken_up ? wire::taken_up : wire::not_taken_up;
    if (status == Status::BUSY && !is_taken_up && !other) taken += wire::busy_with_other;
    if (status == Status::STARTING) taken = wire::still_starting;
    std::string advice = wire::wait_advice;
    if (found.state == wire::process_stopped) advice = wire::stopped_advice + number;
    else if (is_taken_up) advice += wire::abort_advice + number;
    std::string text = command.empty() ? "no response" : "no response to '" + command + "'";
    text += " within " + shown_ms(timeout_ms) + " ms";
    if (other) text += wire::not_sent + (other->empty() ? "" : " ('" + *other + "')");
    ResponseTimeout error(text + ": " + taken + "; " + state + "; " + advice, timeout_ms, command);
    error.pid = found.pid;
    error.state = found.state;
    error.last_moved_ms = found.last_moved_ms;
    error.is_taken_up = is_taken_up;
    return error;
}

/// Whether a program's file name is an interpreter's.
inline bool is_python(const std::string& program) {
    const std::string name = program.substr(program.rfind('/') + 1);
    for (const char* each : {"python", "pypy", "graalpy"}) {
        if (name.find(each) != std::string::npos) return true;
    }
    return false;
}

/// A line of advice on a worker that ended with this output; "" if there is none to give.
inline std::string advice_on(const WorkerHandle& worker, const std::string& output, bool is_killed) {
    const std::string choice = "SessionOptions::python, or TR_PYTHON, names the Python that runs it";
    if (output.find("No module named") != std::string::npos) return "\n" + choice;
    const std::string& program = worker.process->program();
    if (is_killed || worker.channel->read_status() != Status::STARTING || (!output.empty() && is_python(program))) return "";
    return "\nit was run by '" + program + "', and ended before it was ready: " + choice;
}

/// How a worker ended, as the error for those that wait for it.
inline WorkerDied died_error(const WorkerHandle& worker, const std::string& session_id) {
    // The watch may notice the death before the exit status can be read.
    if (!worker.has_ended_service()) worker.process->wait(deadline_in(1000));
    const bool lives_on = worker.lives_on();
    const std::optional<int> code = lives_on ? std::nullopt : worker.process->exit_code();
    const std::string tail = worker.process->log_tail();
    const std::string how = !code      ? "with status unknown"
                            : *code < 0 ? "killed by signal " + std::to_string(-*code)
                                        : "status " + std::to_string(*code);
    const std::string output = !tail.empty()                   ? wire::last_output + tail
                               : worker.process->has_printed() ? wire::no_output_since
                                                               : wire::no_output;
    const std::string what = lives_on ? "has ended its service, and its process " +
                                            std::to_string(worker.process->identity().pid) +
                                            " waits for its own threads or processes"
                                      : "ended (" + how + ")";
    const std::string advice = advice_on(worker, tail, code && *code < 0);
    return WorkerDied("the worker of session '" + session_id + "' " + what + output + advice, code, tail);
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_RESULTS_HPP
