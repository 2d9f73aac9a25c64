// The C++ controller of cpp.py: loans on both sides, timed here. One command a line, one line in answer:
//
//   check COUNT                 echo COUNT float32, compare every element; nanoseconds that the round trip took
//   measure COUNT MOST SECONDS  round trips until there are MOST or the time is over; nanoseconds of each
//   texts COUNT DEPTH           that many greetings, with up to DEPTH in flight; nanoseconds of all. Needs the worker that ships
//
// Arguments: the worker's script, the session's id. Says "ready" first, ends with its standard input.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include <tr_mmap/tr_mmap.hpp>

namespace {

using Clock = std::chrono::steady_clock;

constexpr double timeout_ms = 120'000;
constexpr float full_pass = -7;  // FULL_PASS of base.py: compute all of x + 1

std::int64_t ns_since(Clock::time_point start) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

/// What _measure of sweep.py does: ask for a loan, touch its ends, send it, look at the ends of the answer, let go.
std::int64_t measure(tr::PythonSession& session, std::int64_t count, float number) {
    const Clock::time_point start = Clock::now();
    float first = 0, last = 0;
    {
        tr::Tensor loan = session.empty<float>(tr::Shape(count));
        float* in = loan.data<float>();
        in[0] = number;
        in[1] = 0;
        in[count - 1] = number;
        const tr::Tensor answer = session.calculate("ends", loan, timeout_ms);
        loan = tr::Tensor();
        const float* out = answer.data<float>();
        first = out[0];
        last = out[count - 1];
    }
    const std::int64_t took_ns = ns_since(start);
    if (first != number + 1 || last != number + 1) throw std::runtime_error("the answer's ends are wrong");
    return took_ns;
}

std::int64_t check(tr::PythonSession& session, std::int64_t count) {
    const Clock::time_point start = Clock::now();
    tr::Tensor loan = session.empty<float>(tr::Shape(count));
    float* in = loan.data<float>();
    for (std::int64_t i = 0; i < count; ++i) in[i] = static_cast<float>(i % 1000);
    in[1] = full_pass;
    const tr::Tensor answer = session.calculate("ends", loan, timeout_ms);
    const std::int64_t took_ns = ns_since(start);
    if (answer.numel() != count) throw std::runtime_error("the answer is of another size");
    const float *sent = loan.data<float>(), *out = answer.data<float>();
    for (std::int64_t i = 0; i < count; ++i) {
        if (out[i] != sent[i] + 1) throw std::runtime_error("the answer is wrong at element " + std::to_string(i));
    }
    return took_ns;
}

/// What in_flight.py does: keep so many requests in flight, and take the results in the order of the requests.
std::int64_t greet(tr::PythonSession& session, std::int64_t count, std::size_t depth) {
    std::int64_t next = 0;
    const auto check = [&next](const std::string& answer) {
        if (answer != "Hello " + std::to_string(next++)) throw std::runtime_error("an answer is wrong");
    };
    std::deque<tr::Future<std::string>> waiting;
    const Clock::time_point start = Clock::now();
    for (std::int64_t number = 0; number < count; ++number) {
        const std::string message = "hello " + std::to_string(number);
        if (depth == 1) {
            check(session.fetch_response(message, timeout_ms));
            continue;
        }
        if (waiting.size() == depth) {
            check(waiting.front().get());
            waiting.pop_front();
        }
        waiting.push_back(session.submit_response(message, timeout_ms));
    }
    for (tr::Future<std::string>& each : waiting) check(each.get());
    return ns_since(start);
}

std::string answer_to(tr::PythonSession& session, const std::string& line) {
    std::istringstream words(line);
    std::string command;
    std::int64_t count = 0, most = 0;
    double seconds = 0;
    words >> command >> count;
    if (command == "check") return std::to_string(check(session, count));
    words >> most;
    if (command == "texts" && words) return std::to_string(greet(session, count, static_cast<std::size_t>(most)));
    words >> seconds;
    if (command != "measure" || !words) throw std::runtime_error("what is '" + line + "'?");
    std::string times;
    const Clock::time_point start = Clock::now();
    for (std::int64_t number = 0; number < most; ++number) {
        times += std::to_string(measure(session, count, static_cast<float>(number))) + " ";
        if (static_cast<double>(ns_since(start)) > seconds * 1e9) break;
    }
    return times;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    try {
        tr::PythonSession session(argv[1], argv[2], true);
        session.start();
        if (!session.wait_until_ready(timeout_ms)) throw std::runtime_error("the worker did not become ready");
        std::cout << "ready" << std::endl;
        for (std::string line; std::getline(std::cin, line);) std::cout << answer_to(session, line) << std::endl;
        session.please_exit();
    } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl;
        return 1;
    }
}
