// Tests of threads that share a session, and of how their waits end: in time, by close(), by death, with a clear text.
#include <atomic>
#include <csignal>
#include <thread>
#include <vector>

#include "session.hpp"

namespace {

constexpr double FOREVER_MS = 120'000;  // longer than any wait that ends as promised
constexpr double SOON_MS = 15'000;      // for what needs milliseconds, on a machine that is busy

pid_t worker_of(const PythonSession& s) {
    return static_cast<pid_t>(detail::read_manifest(s.session_dir())->worker->pid);
}

/// A thread that makes a request which does not end by itself; the name of the error that it gets.
class Stuck {
public:
    explicit Stuck(PythonSession& s)
        : thread_([this, &s] {
              try {
                  s.fetch_response("sleep 600", FOREVER_MS);
              } catch (const SessionNotStarted&) {
                  error = "SessionNotStarted";
              } catch (const WorkerDied&) {
                  error = "WorkerDied";
              }
          }) {
        while (!s.is_busy()) std::this_thread::yield();
    }
    ~Stuck() {
        if (thread_.joinable()) thread_.join();
    }
    std::string join() {
        thread_.join();
        return error;
    }

private:
    std::string error = "none";
    std::thread thread_;
};

}  // namespace

TEST(session_calls_end_at_their_timeout_while_another_thread_waits) {
    Ready s("bounded");
    const auto start = Clock::now();
    {
        Stuck other(s);
        const auto late = thrown_by<ResponseTimeout>([&] { s.fetch_response("pid", 30); });
        const std::string text = late.what();
        CHECK_EQUAL(late.command, "pid");
        CHECK_EQUAL(late.timeout_ms, 30);
        CHECK(text.find(", because another request is under way ('sleep'): the worker has not begun to work on it; process " +
                        std::to_string(worker_of(s)) + " is ") != std::string::npos);
        CHECK_EQUAL(late.pid, worker_of(s));
        CHECK(late.is_taken_up == false && late.last_moved_ms);  // the other thread's request is taken up, not this one
        s.send_request("pid", 30);  // which waits for no answer
        thrown_by<ResponseTimeout>([&] { s.wait_for_response(30); });
        thrown_by<ResponseTimeout>([&] { s.calculate("echo", Tensor::ones(Shape(3)), 30); });
        CHECK(!s.wait_until_ready(30) && !s.wait_until_ok(30));
        // What needs no answer does not wait at all.
        Tensor loan = s.empty<float>(Shape(10));
        s.send_tensor(loan, "a");
        CHECK_EQUAL(s.stats().published, 2u);
        s.drop_tensor("a");
        CHECK(s.is_alive() && s.is_busy() && !s.is_ready() && !s.new_response());
        thrown_by<SessionInUse>([&] { s.start(); });
        CHECK_EQUAL(s.read_response(), "");
        CHECK(!s.please_exit(30, false));
        CHECK(!s.please_exit(30, true));
    }
    CHECK(ms_since(start) < SOON_MS);
    CHECK_EQUAL(count_semaphores(), 0u);
}

TEST(session_timeout_says_what_the_worker_does) {
    Ready s("says");
    const pid_t pid = worker_of(s);
    ::kill(pid, SIGSTOP);
    while (std::string(detail::state_of(pid)) != "stopped") std::this_thread::yield();
    s.send_request("pid", 1000);
    const auto late = thrown_by<ResponseTimeout>([&] { s.wait_for_response(20); });
    const std::string text = late.what();
    CHECK(text.find("the worker has not begun to work on it; process " + std::to_string(pid) + " is stopped") !=
          std::string::npos);
    CHECK(text.find("continue it with kill -CONT " + std::to_string(pid)) != std::string::npos);
    CHECK_EQUAL(late.state, "stopped");
    CHECK(late.is_taken_up == false);
    ::kill(pid, SIGCONT);
    CHECK_EQUAL(s.wait_for_response(FOREVER_MS), std::to_string(pid));
    PythonSession early(worker_script(), "says_early", true);
    early.start();
    ::kill(worker_of(early), SIGSTOP);
    early.send_request("pid", 1000);
    const std::string before = thrown_by<ResponseTimeout>([&] { early.wait_for_response(20); }).what();
    CHECK(before.find("the worker is still starting") != std::string::npos);
    ::kill(worker_of(early), SIGCONT);
}

TEST(session_exit_lets_a_request_under_way_be_answered) {
    const std::string mark = std::string(std::getenv("TR_TEST_FOLDER")) + "/answered";
    for (int i = 0; i < 3; ++i) {
        std::filesystem::remove(mark);
        Ready s("exits_late");
        s.send_request("write " + mark);
        CHECK(s.please_exit(FOREVER_MS));
        CHECK(exists(mark));
    }
    std::filesystem::remove(mark);
    Ready s("exits_later");
    std::string answer;
    const pid_t pid = worker_of(s);
    ::kill(pid, SIGSTOP);
    std::thread asking([&] { answer = s.fetch_response("length abc", FOREVER_MS); });
    while (!s.is_busy()) std::this_thread::yield();
    std::thread going_on([&] { ::kill(pid, SIGCONT); });
    CHECK(s.please_exit(FOREVER_MS));
    asking.join();
    going_on.join();
    CHECK_EQUAL(answer, "3");
}

TEST(session_is_busy_from_a_request_to_its_answer) {
    Ready s("busy_early");
    const pid_t pid = worker_of(s);
    ::kill(pid, SIGSTOP);
    s.send_request("pid");
    CHECK(s.is_busy() && !s.is_ready() && !s.wait_until_ready(20));
    CHECK(!s.please_exit(20, false));  // and the request keeps its place
    ::kill(pid, SIGCONT);
    CHECK(s.join(FOREVER_MS));
    Ready next("busy_early_too");
    for (int i = 0; i < 20; ++i) {
        next.send_request("length abc");
        while (next.is_busy()) std::this_thread::yield();
        CHECK_EQUAL(next.read_response(), "3");
    }
    next.send_request("length abcd");
    CHECK(next.wait_until_ready() && next.new_response());
}

TEST(session_a_request_lost_with_its_worker_fails_once_for_its_own_thread) {
    Ready s("lost");
    for (const bool is_found_by_other : {false, true}) {
        ::kill(worker_of(s), SIGSTOP);
        s.send_request("length mine");
        ::kill(worker_of(s), SIGKILL);
        CHECK(s.join(FOREVER_MS));
        if (is_found_by_other) {
            std::thread([&] { thrown_by<WorkerDied>([&] { s.send_request("pid"); }); }).join();
        } else {
            s.start();
            std::thread([&] { s.send_request("length others"); }).join();
        }
        CHECK(s.new_response());
        thrown_by<WorkerDied>([&] { s.wait_for_response(FOREVER_MS); });
        if (is_found_by_other) {
            CHECK(!s.new_response());
            s.start();
            std::thread([&] { s.send_request("length others"); }).join();
        }
        CHECK_EQUAL(s.wait_for_response(FOREVER_MS), "6");
        CHECK_EQUAL(s.fetch_response("length again"), "5");
    }
    thrown_by<WorkerDied>([&] { s.fetch_response("die 3"); });
    CHECK(!s.new_response());  // that call has told it
}

TEST(session_waits_of_every_kind_end_with_close) {
    Ready s("ends_closed");
    Stuck other(s);
    std::atomic<int> ended{0};
    std::vector<std::thread> threads;
    const auto waits = [&](auto action) {
        threads.emplace_back([&ended, action] {
            try {
                action();
            } catch (const SessionNotStarted&) {
                ++ended;
            }
        });
    };
    waits([&] { s.fetch_response("pid", FOREVER_MS); });
    waits([&] { s.submit_response("pid", FOREVER_MS).get(); });
    waits([&] { s.wait_for_tensor(FOREVER_MS); });
    waits([&] { s.wait_until_ready(FOREVER_MS); });
    waits([&] { s.wait_until_ok(FOREVER_MS); });
    std::thread second([&] { s.close(); });
    s.close();
    second.join();
    for (auto& each : threads) each.join();  // those that came too late get the same
    CHECK_EQUAL(ended.load(), 5);
    CHECK_EQUAL(other.join(), "SessionNotStarted");
    thrown_by<SessionNotStarted>([&] { s.stats(); });
    s.start();
    CHECK(s.wait_until_ready(FOREVER_MS));
}

TEST(session_waits_of_every_kind_end_with_the_worker) {
    Ready s("ends_died");
    std::atomic<int> died{0};
    std::vector<std::thread> threads;
    std::atomic<int> waiting{0};
    const auto waits = [&](auto action) {
        threads.emplace_back([&died, &waiting, action] {
            ++waiting;
            try {
                action();
            } catch (const WorkerDied& error) {
                died += error.exit_code == -SIGKILL;
            }
        });
    };
    waits([&] { s.wait_for_response(FOREVER_MS); });  // nobody sends a request
    waits([&] { s.wait_for_tensors(FOREVER_MS); });
    waits([&] {
        while (!s.is_busy()) std::this_thread::yield();
        s.fetch_response("pid", FOREVER_MS);
    });
    waits([&] { s.fetch_response("sleep 600", FOREVER_MS); });
    while (waiting < 4 || !s.is_busy()) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // so that most of them wait; all get there in any case
    ::kill(worker_of(s), SIGKILL);
    for (auto& each : threads) each.join();
    CHECK_EQUAL(died.load(), 4);
    s.start();
    CHECK(s.wait_until_ready(FOREVER_MS));
    Stuck other(s);
    s.terminate();
    CHECK_EQUAL(other.join(), "WorkerDied");
}

TEST(session_closed_by_threads_that_start_it_again) {
    PythonSession s(worker_script(), "restarts", true);
    std::atomic<bool> is_over{false};
    std::thread other([&] {
        while (!is_over) {
            s.close();
            s.is_alive();
            std::this_thread::yield();
        }
    });
    for (int i = 0; i < 5; ++i) {
        try {
            s.start();
            s.wait_until_ready(FOREVER_MS);
        } catch (const SessionNotStarted&) {
        } catch (const SessionInUse&) {
        }
    }
    is_over = true;
    other.join();
    s.close();
    CHECK(!exists(s.session_dir()));
}

TEST(session_threads_take_the_answers_to_their_own_requests_first) {
    Ready s("own_answers");
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int thread = 1; thread <= 3; ++thread) {
        threads.emplace_back([&s, &wrong, thread] {
            const std::string word(static_cast<std::size_t>(thread), 'x');
            const Tensor mine = Tensor::full(Shape(thread), 1.0f);
            const std::string tag = "tag" + std::to_string(thread);
            s.send_tensor(mine, tag);
            for (int i = 0; i < 40; ++i) {
                s.send_request("length " + word, FOREVER_MS);
                wrong += s.wait_for_response(FOREVER_MS) != std::to_string(thread);
                s.send_request("echo " + tag, FOREVER_MS);
                wrong += s.wait_for_tensor(FOREVER_MS).numel() != mine.numel();
            }
        });
    }
    for (auto& each : threads) each.join();
    CHECK_EQUAL(wrong.load(), 0);
    CHECK(!s.new_response());
}

TEST(session_thread_without_a_request_takes_the_oldest_answer) {
    Ready s("any_answer");
    std::thread([&] { s.send_request("length a", FOREVER_MS); }).join();
    std::thread([&] { s.send_request("length bb", FOREVER_MS); }).join();
    s.send_request("length ccc", FOREVER_MS);
    CHECK_EQUAL(s.wait_for_response(FOREVER_MS), "3");
    CHECK_EQUAL(s.wait_for_response(FOREVER_MS), "1");
    CHECK_EQUAL(s.wait_for_response(FOREVER_MS), "2");
}

TEST(session_answer_reaches_its_taker_while_another_thread_makes_a_long_request) {
    Ready s("taker");
    s.send_request("sleep 0.5");
    Stuck other(s);  // consumes that answer too
    CHECK_EQUAL(s.wait_for_response(SOON_MS), "slept");
    s.terminate();
}

TEST(session_timeout_behind_an_earlier_request_is_that_of_the_new_one) {
    Ready s("behind");
    s.send_request("sleep 600");
    while (!s.is_busy()) std::this_thread::yield();
    const auto check = [](const ResponseTimeout& late) {
        const std::string text = late.what();
        CHECK_EQUAL(late.command, "length");
        CHECK(text.find("no response to 'length' within 30 ms, because another request is under way ('sleep'): "
                        "the worker has not begun to work on it; process ") == 0);
    };
    check(thrown_by<ResponseTimeout>([&] { s.fetch_response("length a", 30); }));
    check(thrown_by<ResponseTimeout>([&] { s.fetch_response("length a", 30); }));
    s.terminate();
}

TEST(session_responses_read_by_threads_at_once_come_once_each) {
    Ready s("readers");
    std::atomic<bool> is_over{false};
    std::atomic<int> taken{0}, failed{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
        threads.emplace_back([&] {
            while (!is_over) {
                try {
                    if (!s.read_response().empty()) ++taken;
                } catch (const TRException&) {
                    ++failed;
                }
            }
        });
    }
    for (int sent = 1; sent <= 300; ++sent) {
        s.send_request("length abc", FOREVER_MS);
        while (taken < sent && failed == 0) std::this_thread::yield();
    }
    is_over = true;
    for (auto& each : threads) each.join();
    CHECK_EQUAL(failed.load(), 0);
    CHECK_EQUAL(taken.load(), 300);
}

TEST(session_that_this_process_has_already) {
    PythonSession first(worker_script(), "twice", true);
    first.start();
    const auto in_use = thrown_by<SessionInUse>([] { PythonSession(worker_script(), "twice", true).start(); });
    CHECK_EQUAL(in_use.pid, ::getpid());
    CHECK(std::string(in_use.what()).find("this very process") != std::string::npos);
    SessionOptions options;
    options.replace = true;
    CHECK(first.wait_until_ready(FOREVER_MS));
    Stuck waiting(first);
    Ready second("twice", options);
    CHECK_EQUAL(waiting.join(), "SessionNotStarted");
    CHECK_EQUAL(second.fetch_response("length abc", FOREVER_MS), "3");
    thrown_by<SessionNotStarted>([&] { first.fetch_response("pid"); });
    thrown_by<SessionInUse>([&] { first.start(); });  // it does not replace
    first.close();
    CHECK_EQUAL(second.fetch_response("length abc", FOREVER_MS), "3");
}

TEST(session_timeout_beside_a_request_by_hand_says_so) {
    Ready s("by_hand");
    std::ofstream(s.session_dir() + "/request.json") << R"({"command": "sleep", "parameters": "600"})";
    while (!s.is_busy()) std::this_thread::yield();
    const std::string text = thrown_by<ResponseTimeout>([&] { s.fetch_response("pid", 30); }).what();
    CHECK(text.find("the worker has not begun to work on it, because it works on a request that somebody wrote by hand; "
                    "process ") != std::string::npos);
    s.terminate();
}
