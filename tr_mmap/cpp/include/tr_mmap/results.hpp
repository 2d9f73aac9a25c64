// The result of a request, or the error that says why there is none. Does not wait for responses.
#ifndef TR_MMAP_RESULTS_HPP
#define TR_MMAP_RESULTS_HPP

#include "macros_off.hpp"

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "clock.hpp"
#include "errors.hpp"
#include "identity.hpp"
#include "numbers.hpp"
#include "protocol.hpp"
#include "session_resources.hpp"
#include "tensor.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// A response, and views of its tensors, which hold the leases.
struct Result {
    Response response;
    std::vector<Tensor> tensors = {};
    std::exception_ptr fault = {};   // why there is no such response, or no such tensors
    bool is_to_be_received = false;  // its tensors were not received yet: nobody wanted them, or a limit prevented it
    std::uint64_t asker = 0;         // marks the thread that made the request
    bool is_lost = false;            // the worker has ended before it responded
    bool is_given_up = false;        // lost, and its asker has started a new worker: its next request replaces this one
};

[[noreturn]] inline void throw_remote_error(const std::string& command, const Failure& failure) {
    if (failure.kind == wire::failure_unknown_command) {
        throw UnknownCommand(failure.message, command, failure.type, failure.traceback);
    }
    std::string message = failure.message;
    if (failure.kind != wire::failure_bad_input) {
        message = "'" + command + "' failed in the worker: " + failure.type + ": " + failure.message;
        if (!failure.traceback.empty()) message += "\n\n" + failure.traceback;
    }
    if (failure.needed_nbytes && failure.free_nbytes) {
        throw RemoteOutOfSpace(message, command, failure.type, failure.traceback, *failure.needed_nbytes,
                               *failure.free_nbytes);
    }
    throw RemoteError(message, command, failure.type, failure.traceback);
}

/// A timeout in the text of an error.
inline std::string shown_ms(double ms) {
    if (!(ms < 1e15)) return "unlimited";
    return ms < 1000 ? format_real(ms == 0 ? 0.0 : ms, 'g', 4) : format_real(ms, 'f', 0);  // 0 has a sign, too
}

/// What the worker is doing, for the text of a ResponseTimeout. ``command`` is the pending one.
inline std::string describe(const WorkerHandle& worker, const std::string& command) {
    const std::int64_t pid = worker.process->identity().pid;
    std::string text = "its worker, process " + std::to_string(pid) + " (" + state_of(pid) + "), ";
    try {
        const Status status = worker.channel->read_status();
        if (status == Status::BUSY && !worker.channel->is_busy_by_hand()) {
            return text + "has begun to work on '" + command + "'";
        }
        if (status == Status::STARTING) return text + "has not reached server.run() yet";
        text += "has not begun to work on '" + command + "'";
        return status == Status::BUSY ? text + ", because it works on a request that somebody wrote by hand" : text;
    } catch (const TRException&) {
        return text + "shows no status that can be read";
    }
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
inline std::string advice_on(const WorkerHandle& worker, const std::string& output) {
    const std::string choice = "SessionOptions::python, or TR_PYTHON, names the Python that runs it";
    if (output.find("No module named") != std::string::npos) return "\n" + choice;
    const std::string& program = worker.process->program();
    if (worker.channel->read_status() != Status::STARTING || (!output.empty() && is_python(program))) return "";
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
    const std::string output = tail.empty() ? "; it printed nothing" : "; its last output:\n" + tail;
    const std::string what = lives_on ? "has ended its service, and its process " +
                                            std::to_string(worker.process->identity().pid) +
                                            " waits for its own threads or processes"
                                      : "ended (" + how + ")";
    return WorkerDied("the worker of session '" + session_id + "' " + what + output + advice_on(worker, tail),
                      code, tail);
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_RESULTS_HPP
