// Ways in which a process ends that still has a session: "suite end WAY" takes one of them. Nothing must be left, and
// nothing go wrong: no output on stderr, status 0.
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#include "tr_mmap/tr_mmap.hpp"

namespace {

tr::PythonSession global("default", "global", true);  // before the library's own static objects are made
tr::PythonSession* left_behind = nullptr;

struct Loud : tr::PythonSession {  // prints where its worker's output goes, from a thread
    Loud() : tr::PythonSession("default", "static", false) { start(); }
};

void use(tr::PythonSession& s) {
    if (!s.is_alive()) s.start();
    if (!s.wait_until_ready(60'000)) std::abort();
    std::cout << s.fetch_response("hello end", 60'000) << std::endl;
}

void wait_for_ever(tr::PythonSession& s) {
    try {
        s.wait_for_response(600'000);
    } catch (const tr::WorkerDied&) {
        std::abort();  // the session is closed, its worker does not die
    }
}

}  // namespace

int end_in(const std::string& way) {
    if (way == "global") use(global);
    if (way == "static") {
        static Loud only;
        use(only);
        const tr::Tensor kept = only.calculate("square", tr::Tensor::ones(tr::Shape(3)));
        static const tr::Tensor longer = kept;
    }
    if (way == "thread_local") {
        std::thread([] {
            thread_local tr::PythonSession other("default", "thread", true);
            use(other);
        }).join();
        thread_local tr::PythonSession mine("default", "main", true);
        use(mine);
    }
    if (way == "atexit") {
        std::atexit([] { left_behind->close(); });
        left_behind = new tr::PythonSession("default", "atexit", true);
        use(*left_behind);
    }
    if (way == "waiting") {
        use(global);
        std::thread([] { wait_for_ever(global); }).detach();
        std::thread([] { wait_for_ever(global); }).detach();
    }
    if (way == "busy") {
        use(global);
        std::thread([] {
            while (true) global.calculate("square", tr::Tensor::ones(tr::Shape(1000)));
        }).detach();
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    if (way == "exit") {  // called by another thread, while this one waits
        use(global);
        std::thread([] { std::exit(0); }).detach();
        wait_for_ever(global);
    }
    if (way == "joined") {  // a thread that is joined when static objects are destroyed
        static struct Joined {
            std::thread thread;
            ~Joined() { thread.join(); }
        } joined;
        use(global);
        static const auto close = [] {
            try {
                wait_for_ever(global);
            } catch (const tr::SessionNotStarted&) {
            }
        };
        joined.thread = std::thread([] { close(); });
        std::atexit([] { global.close(); });
    }
    return 0;
}
