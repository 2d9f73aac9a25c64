// What the tests of sessions share: sessions that are ready, and what can be seen from outside. TR_WORKSPACE is this
// run's own, and empty in the end; TR_TEST_WORKER is worker.py beside this file, TR_TEST_FOLDER an empty directory.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>

#include "check.hpp"
#include "tr_mmap/tr_mmap.hpp"

using namespace tr;

using Clock = std::chrono::steady_clock;

inline std::string worker_script() { return std::getenv("TR_TEST_WORKER"); }

/// A session that is ready.
struct Ready : PythonSession {
    explicit Ready(const std::string& id, SessionOptions options = {})
        : PythonSession(worker_script(), id, true, std::move(options)) {
        start();
        if (!wait_until_ready(30000)) throw Failed("the worker did not get ready");
    }
};

/// One session for all tests that leave it usable.
inline Ready& shared() {
    static Ready only("shared");
    if (!only.is_alive()) {
        only.start();
        only.wait_until_ready(30000);
    }
    return only;
}

inline bool exists(const std::string& path) { return std::filesystem::exists(path); }

inline std::size_t count_semaphores() {
    std::size_t count = 0;
    const std::string start = "sem.tr_" + std::to_string(::getpid()) + "_";
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
        count += entry.path().filename().string().compare(0, start.size(), start) == 0;
    }
    return count;
}

inline double ms_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

inline bool all_equal(const Tensor& tensor, float value) {
    const float* elements = tensor.data<float>();
    return std::all_of(elements, elements + tensor.numel(), [=](float each) { return each == value; });
}

inline bool is_running(pid_t pid) { return detail::Identity::of(pid).start_ticks != 0 && detail::Identity::of(pid).is_alive(); }

/// Run in a child, which has no thread but this; whether it did not fail, and whether it left at all.
template <class Action>
inline bool holds_in_child(Action action) {
    const pid_t child = ::fork();
    if (child == 0) {
        try {
            action();
        } catch (const std::exception& error) {
            std::cerr << error.what() << std::endl;
            ::_exit(1);
        }
        ::_exit(0);
    }
    int status = 0;
    if (!detail::wait_for_ends({detail::Identity::of(child)}, detail::deadline_in(60'000))) ::kill(child, SIGKILL);
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
