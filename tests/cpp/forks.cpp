// A test of forks beside threads that use a session. It is compiled without AddressSanitizer: that of g++ 12 locks its
// memory for each thread, not for a fork, so that a child may wait for ever for what a thread of its parent held.
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "session.hpp"

TEST(session_forked_while_threads_use_it) {
    auto s = std::make_unique<Ready>("forked");
    Tensor loan = s->empty<float>(Shape(4));
    Tensor sent = s->empty<float>(Shape(4));
    s->send_tensor(sent, "sent");
    Tensor view = s->calculate("echo", Tensor::full(Shape(10), 6.0f));
    std::atomic<bool> is_over{false};
    std::vector<std::thread> threads;
    for (int size : {8, 16}) {
        threads.emplace_back([&, size] {
            while (!is_over) s->empty<float>(Shape(size));
        });
    }
    threads.emplace_back([&] {
        while (!is_over) s->calculate("echo", Tensor::ones(Shape(5)));
    });
    bool is_right = true;
    for (int i = 0; i < 12 && is_right; ++i) {
        is_right = holds_in_child([&] {
            CHECK(all_equal(view, 6) && sent.data<float>() != nullptr);
            for (Tensor* each : {&loan, &sent, &view}) *each = Tensor();
            thrown_by<SessionNotStarted>([&] { s->fetch_response("pid"); });
            thrown_by<SessionNotStarted>([&] { s->empty<float>(Shape(3)); });
            thrown_by<SessionNotStarted>([&] { s->send_request("pid"); });
            thrown_by<SessionNotStarted>([&] { s->wait_for_response(); });
            thrown_by<SessionNotStarted>([&] { s->wait_until_ready(); });
            thrown_by<SessionNotStarted>([&] { s->stats(); });
            thrown_by<SessionNotStarted>([&] { s->start(); });
            thrown_by<SessionNotStarted>([&] { s->set_quiet_mode(false); });
            CHECK(!s->is_alive() && !s->is_ready() && !s->is_busy() && !s->new_response() && !s->join(10));
            s->please_exit(100);
            s->terminate();
            s->close();
            if (i % 4 == 1) s.reset();
            if (i % 4 == 2) std::exit(0);  // static objects end here, sessions among them
            if (i % 4 == 3) Ready("own" + std::to_string(::getpid()));  // a session of its own
        });
    }
    is_over = true;
    for (auto& each : threads) each.join();
    CHECK(is_right);
    CHECK(all_equal(s->calculate("echo", Tensor::full(Shape(10), 7.0f)), 7));
}
