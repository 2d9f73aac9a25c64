// The C++ suite: "suite test PREFIX" runs tests; the other commands are in tools.cpp.
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "check.hpp"

int run_tests(const std::string& prefix) {
    int failures = 0, count = 0;
    for (const Test& test : all_tests()) {
        if (test.name.compare(0, prefix.size(), prefix) != 0) continue;
        ++count;
        const auto start = std::chrono::steady_clock::now();
        std::string fault;
        try {
            test.run();
        } catch (const std::exception& error) {
            fault = error.what();
        }
        const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
        std::cout << (fault.empty() ? "ok     " : "FAILED ") << test.name << " (" << static_cast<int>(took.count())
                  << " ms)" << (fault.empty() ? "" : ": " + fault) << std::endl;
        failures += !fault.empty();
    }
    std::cout << count << " tests, " << failures << " failed" << std::endl;
    return failures != 0 || count == 0;
}

static const pid_t main_pid = ::getpid();

/// Asked by LeakSanitizer at exit. In a fork's child the threads that held its parent's objects are gone.
extern "C" int __lsan_is_turned_off();
extern "C" int __lsan_is_turned_off() { return ::getpid() != main_pid; }

#ifdef WITHOUT_TOOLS
static int run_tool(const std::vector<std::string>&) { return 2; }
#else
int run_tool(const std::vector<std::string>& arguments);
#endif

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() == 2 && arguments[0] == "test") return run_tests(arguments[1]);
    return run_tool(arguments);
}
