// A session of C++ that does what lines on its standard input say, and answers those that ask:
//
//     S ID TIMEOUT_MS MESSAGE                      submit a request; a TIMEOUT_MS of -1 is no limit
//     T ID TIMEOUT_MS COUNT START STEP MESSAGE     the same with a tensor: START, START + STEP, ...; its result is one too
//     X ID TIMEOUT_MS COUNT START STEP MESSAGE     the same with a tensor; its result is a text
//     G ID      the outcome: "text TEXT", "tensor COUNT START", or "error NAME"
//     D ID      whether there is an outcome: 1 or 0
//     K ID      cancel it; whether that has succeeded: 1 or 0
//     Q ID      the same, and end its worker if its handler was called
//     F         how many requests are in flight
//     P         the worker's process
//     R         start again, and wait until the worker is ready
//     C         close the session
//
// Its arguments: the worker's script, and options: auth, fail, max_in_flight=N, budget_nbytes=N.
#include <iostream>
#include <map>
#include <sstream>

#include <tr_mmap/tr_mmap.hpp>

namespace {

using namespace std::chrono_literals;

struct Request {
    tr::Future<std::string> text;
    tr::Future<tr::Tensor> tensor;
    std::string error;  // of the attempt to send it
};

// The name of the error that is being handled. It is thrown again, which needs no RTTI.
std::string name_of_error() {
    try {
        throw;
    } catch (const tr::ResponseTimeout&) {
        return "ResponseTimeout";
    } catch (const tr::WorkerDied&) {
        return "WorkerDied";
    } catch (const tr::Busy&) {
        return "Busy";
    } catch (const tr::UnknownCommand&) {
        return "UnknownCommand";
    } catch (const tr::RequestCancelled&) {
        return "RequestCancelled";
    } catch (const tr::RemoteError&) {
        return "RemoteError";
    } catch (const tr::SessionNotStarted&) {
        return "SessionNotStarted";
    } catch (const std::exception& error) {
        return error.what();
    }
}

double time_of(std::istream& line) {
    double timeout_ms = 0;
    line >> timeout_ms;
    return timeout_ms < 0 ? std::numeric_limits<double>::infinity() : timeout_ms;
}

tr::Tensor tensor_of(std::istream& line) {
    std::size_t count = 0;
    double start = 0, step = 0;
    line >> count >> start >> step;
    std::vector<double> values(count);
    for (std::size_t index = 0; index < count; ++index) values[index] = start + step * static_cast<double>(index);
    return tr::Tensor::from_vector<double>(tr::Shape{static_cast<std::int64_t>(count)}, values);
}

std::string rest_of(std::istream& line) {
    std::string rest;
    std::getline(line >> std::ws, rest);
    return rest;
}

void submit(tr::PythonSession& session, char kind, std::istream& line, Request& request) try {
    const double timeout_ms = time_of(line);
    if (kind == 'S') {
        request.text = session.submit_response(rest_of(line), timeout_ms);
        return;
    }
    const tr::Tensor tensor = tensor_of(line);
    if (kind == 'X') request.text = session.submit_response(rest_of(line), {tensor}, timeout_ms);
    else request.tensor = session.submit(rest_of(line), {tensor}, timeout_ms);
} catch (const std::exception&) {
    request.error = name_of_error();
}

bool is_done(const Request& request) {
    if (request.text.valid()) return request.text.wait_for(0s) == std::future_status::ready;
    return !request.tensor.valid() || request.tensor.wait_for(0s) == std::future_status::ready;
}

bool cancel(Request& request, bool kill_running) {
    return request.text.valid() ? request.text.cancel(kill_running) : request.tensor.cancel(kill_running);
}

std::string outcome_of(Request& request) try {
    if (!request.error.empty()) return "error " + request.error;
    if (request.text.valid()) return "text " + request.text.get();
    const tr::Tensor tensor = request.tensor.get();
    const double* values = tensor.data<double>();
    for (std::int64_t index = 0; index < tensor.numel(); ++index)
        if (values[index] != values[0]) return "error it has not one value";
    return "tensor " + std::to_string(tensor.numel()) + " " + std::to_string(values[0]);
} catch (const std::exception&) {
    return "error " + name_of_error();
}

tr::SessionOptions options_of(int count, char** words) {
    tr::SessionOptions options;
    for (int index = 2; index < count; ++index) {
        const std::string word = words[index];
        const std::string value = word.substr(word.find('=') + 1);
        if (word == "auth") options.has_auth = true;
        if (word == "fail") options.at_limit = tr::AtLimit::FAIL;
        if (word == "block") options.block_ms = 60'000;
        if (word.rfind("max_in_flight=", 0) == 0) options.max_in_flight = std::stoi(value);
        if (word.rfind("budget_nbytes=", 0) == 0) options.budget_nbytes = std::stoull(value);
    }
    return options;
}

}  // namespace

int main(int count, char** words) {
    tr::PythonSession session(words[1], "many", true, options_of(count, words));
    session.start();
    if (!session.wait_until_ready(60'000)) return 1;
    std::cout << "ready" << std::endl;
    std::map<int, Request> requests;
    for (std::string text; std::getline(std::cin, text);) {
        std::istringstream line(text);
        char what = 0;
        int id = 0;
        line >> what >> id;
        if (what == 'S' || what == 'T' || what == 'X') submit(session, what, line, requests[id]);
        if (what == 'G') std::cout << outcome_of(requests[id]) << std::endl;
        if (what == 'D') std::cout << is_done(requests[id]) << std::endl;
        if (what == 'K' || what == 'Q') std::cout << cancel(requests[id], what == 'Q') << std::endl;
        if (what == 'F') std::cout << session.stats().in_flight << std::endl;
        if (what == 'P') std::cout << tr::detail::read_manifest(session.session_dir())->worker->pid << std::endl;
        if (what == 'R') {
            session.start();
            std::cout << session.wait_until_ready(60'000) << std::endl;
        }
        if (what == 'C') {
            session.close();
            std::cout << "closed" << std::endl;
        }
    }
    return 0;
}
