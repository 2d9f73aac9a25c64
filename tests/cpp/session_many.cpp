// Tests of many requests in flight: futures, threads beside them, limits, timeouts, deaths, signed messages.
#include <atomic>
#include <csignal>
#include <deque>
#include <fstream>
#include <future>
#include <random>
#include <thread>
#include <vector>

#include "session.hpp"

namespace {

#if defined(__has_feature)
constexpr bool IS_THREAD_SANITIZER = __has_feature(thread_sanitizer);
#elif defined(__SANITIZE_THREAD__)
constexpr bool IS_THREAD_SANITIZER = true;
#else
constexpr bool IS_THREAD_SANITIZER = false;
#endif
constexpr double LONG_MS = 120'000;  // longer than any wait that ends as promised

pid_t worker_pid(const PythonSession& s) {
    return static_cast<pid_t>(detail::read_manifest(s.session_dir())->worker->pid);
}

template <class Future>
bool is_there(const Future& future) {
    return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

/// Wait for a future that must become ready; a test that waits for ever says nothing.
template <class T>
T result_of(std::future<T>& future) {
    if (future.wait_for(std::chrono::seconds(120)) != std::future_status::ready) throw Failed("the future is not ready");
    return future.get();
}

/// How often the library's threads of this process have slept and woken, all together; but for the calling thread.
long count_wakes_of_others() {
    long count = 0;
    const std::string own = std::to_string(::getpid());
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
        if (entry.path().filename() == own) continue;
        std::ifstream file(entry.path() / "status");
        for (std::string line; std::getline(file, line);) {
            if (line.rfind("voluntary_ctxt_switches:", 0) == 0) count += std::stol(line.substr(line.find(':') + 1));
        }
    }
    return count;
}

/// Submit so many texts, not more than ``ahead`` before an answer is taken; how many answers were wrong.
int count_wrong(PythonSession& s, int number, std::size_t ahead, int start = 0) {
    std::deque<std::pair<int, std::future<std::string>>> waiting;
    int wrong = 0;
    const auto take = [&] {
        wrong += result_of(waiting.front().second) != std::to_string(waiting.front().first);
        waiting.pop_front();
    };
    for (int i = start; i < start + number; ++i) {
        waiting.emplace_back(i, s.submit_response("say_back " + std::to_string(i), LONG_MS));
        if (waiting.size() > ahead) take();
    }
    while (!waiting.empty()) take();
    return wrong;
}

/// A session whose worker does nothing until go_on().
struct Stopped : Ready {
    explicit Stopped(const std::string& id, SessionOptions options = {}) : Ready(id, std::move(options)) {
        pid = worker_pid(*this);
        ::kill(pid, SIGSTOP);
        while (std::string(detail::state_of(pid)) != "stopped") std::this_thread::yield();
    }
    void go_on() { ::kill(pid, SIGCONT); }
    pid_t pid;
};

SessionOptions signed_options() {
    SessionOptions options;
    options.has_auth = true;
    return options;
}

}  // namespace

TEST(session_many_futures_hold_what_calls_return) {
    Ready& s = shared();
    auto text = s.submit_response("length abc");
    auto tensor = s.submit("echo", Tensor::full(Shape(5), 2.0f));
    auto both = s.submit_tensors("echo", {Tensor::full(Shape(2), 3.0f), Tensor::full(Shape(3), 4.0f)});
    auto counted = s.submit_tensors("count 3");
    auto told = s.submit_response("is_first 5", {Tensor::full(Shape(4), 5.0f)}, 5000);  // the tags follow the words
    auto failed = s.submit("fail on purpose");
    auto unknown = s.submit("dance");
    auto none = s.submit("length abc", Tensor::ones(Shape(1)));  // "abc $0"
    auto several = s.submit("count 2");
    CHECK_EQUAL(result_of(text), "3");
    CHECK(all_equal(result_of(tensor), 2));
    const std::vector<Tensor> pair = result_of(both);
    CHECK(all_equal(pair.at(0), 3) && all_equal(pair.at(1), 4));
    CHECK_EQUAL(result_of(counted).size(), 3u);
    CHECK_EQUAL(result_of(told), "True");
    CHECK_EQUAL(thrown_by<RemoteError>([&] { result_of(failed); }).error_type, "ValueError");
    thrown_by<UnknownCommand>([&] { result_of(unknown); });
    CHECK_EQUAL(thrown_by<UnexpectedResponse>([&] { result_of(none); }).result, "6");
    CHECK(std::string(thrown_by<UnexpectedResponse>([&] { result_of(several); }).what()).find("submit_tensors()") !=
          std::string::npos);
    thrown_by<BadMessage>([&] { s.submit(" "); });
    thrown_by<BadMessage>([&] { s.submit("echo", Tensor(), -1.0); });
    CHECK(!s.new_response());  // nobody else can take these
    CHECK_EQUAL(s.stats().in_flight, 0u);
}

TEST(session_many_thousands_of_requests_get_their_own_answers) {
    CHECK_EQUAL(count_wrong(shared(), 10'000, 31), 0);
    Ready s("signed_many", signed_options());
    CHECK_EQUAL(count_wrong(s, 2000, 40), 0);  // more than may be in flight: submit() waits
    CHECK_EQUAL(s.stats().rejected, 0u);
}

TEST(session_many_tensors_in_flight_keep_their_content) {
    Ready& s = shared();
    std::deque<std::pair<float, std::future<Tensor>>> waiting;
    std::vector<std::pair<float, Tensor>> kept;
    for (int i = 0; i < 600; ++i) {
        Tensor tensor = i % 2 ? Tensor::empty(Shape(1 + i % 7 * 500)) : s.empty<float>(Shape(1 + i % 7 * 500));
        tensor.fill(i);
        waiting.emplace_back(static_cast<float>(i), s.submit(i % 3 ? "lend" : "echo", tensor, LONG_MS));
        if (!(i % 2)) CHECK(!tensor.is_writable());
        else tensor.fill(-1);  // it was copied
        if (waiting.size() > 20) {
            kept.emplace_back(waiting.front().first, result_of(waiting.front().second));
            waiting.pop_front();
        }
        if (kept.size() > 30) kept.erase(kept.begin(), kept.begin() + 20);
        for (const auto& [value, result] : kept) CHECK(all_equal(result, value));
    }
    while (!waiting.empty()) {
        CHECK(all_equal(result_of(waiting.front().second), waiting.front().first));
        waiting.pop_front();
    }
}

TEST(session_many_threads_submit_and_call_at_once) {
    Ready s("mixed", signed_options());
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 3; ++thread) {
        threads.emplace_back([&, thread] { wrong += count_wrong(s, 400, 25, 10'000 * thread); });
        threads.emplace_back([&, thread] {
            for (int i = 0; i < 150; ++i) {
                const std::string word = std::to_string(thread) + "_" + std::to_string(i);
                wrong += s.fetch_response("say_back " + word, LONG_MS) != word;
                s.send_request("say_back x" + word, LONG_MS);
                wrong += s.wait_for_response(LONG_MS) != "x" + word;
                const float value = static_cast<float>(thread * 1000 + i);
                wrong += !all_equal(s.calculate("echo", Tensor::full(Shape(50), value), LONG_MS), value);
            }
        });
    }
    for (auto& each : threads) each.join();
    CHECK_EQUAL(wrong.load(), 0);
    CHECK_EQUAL(s.stats().in_flight, 0u);
    CHECK_EQUAL(s.stats().rejected, 0u);
}

TEST(session_many_tags_are_those_of_the_moment_when_the_request_was_sent) {
    Stopped s("moments_of_tags");
    std::vector<std::future<std::string>> waiting;
    for (int i = 0; i < 20; ++i) {
        s.send_tensor(Tensor::full(Shape(600), static_cast<float>(i)), "t");
        waiting.push_back(s.submit_response("is t " + std::to_string(i), LONG_MS));
    }
    s.drop_tensor("t");
    waiting.push_back(s.submit_response("is t 19", LONG_MS));
    CHECK(s.stats().segments >= 20);  // each is still to be read
    s.go_on();
    for (int i = 0; i < 20; ++i) CHECK_EQUAL(result_of(waiting[static_cast<std::size_t>(i)]), "True");
    thrown_by<RemoteError>([&] { result_of(waiting.back()); });
    CHECK_EQUAL(s.stats().free_nbytes, s.stats().nbytes);
}

TEST(session_many_one_more_than_the_limit_waits_or_is_refused) {
    SessionOptions options;
    options.max_in_flight = 4;
    Stopped blocks("blocks", options);
    std::vector<std::future<std::string>> waiting;
    for (int i = 0; i < 4; ++i) waiting.push_back(blocks.submit_response("length abc", LONG_MS));
    CHECK_EQUAL(blocks.stats().in_flight, 4u);
    const auto late = thrown_by<ResponseTimeout>([&] { blocks.submit_response("pid", 20); });
    CHECK_EQUAL(late.command, "pid");
    CHECK(std::string(late.what()).find("because another request is under way ('length')") != std::string::npos);
    thrown_by<ResponseTimeout>([&] { blocks.send_request("pid", 20); });
    thrown_by<ResponseTimeout>([&] { blocks.fetch_response("pid", 20); });
    std::thread more([&] { waiting.push_back(blocks.submit_response("length abc", LONG_MS)); });
    blocks.go_on();
    more.join();
    for (auto& each : waiting) CHECK_EQUAL(result_of(each), "3");

    options.at_limit = AtLimit::FAIL;
    Stopped fails("fails", options);
    waiting.clear();
    for (int i = 0; i < 4; ++i) waiting.push_back(fails.submit_response("length abc", LONG_MS));
    CHECK_EQUAL(thrown_by<Busy>([&] { fails.submit_response("length abc"); }).limit, 4);
    const std::string text = thrown_by<Busy>([&] { fails.send_request("length abc"); }).what();
    CHECK(text.find("4 requests of session 'fails' are in flight") == 0);
    fails.go_on();
    for (auto& each : waiting) CHECK_EQUAL(result_of(each), "3");
    CHECK_EQUAL(fails.fetch_response("length abcd"), "4");
    for (const int bad : {0, -1, 63}) {
        options.max_in_flight = bad;
        CHECK_EQUAL(thrown_by<BadMessage>([&] { PythonSession("default", "bad", true, options); }).detail,
                    "max_in_flight");
    }
}

TEST(session_many_a_late_answer_is_nobodys_and_gives_its_place_back) {
    SessionOptions options;
    options.max_in_flight = 3;
    Stopped s("late", options);
    auto first = s.submit("echo", Tensor::full(Shape(5), 1.0f), 30);
    auto second = s.submit_response("length abcd", 40);
    auto third = s.submit_response("length abcde", LONG_MS);
    CHECK_EQUAL(thrown_by<ResponseTimeout>([&] { result_of(first); }).timeout_ms, 30);
    const auto late = thrown_by<ResponseTimeout>([&] { result_of(second); });
    CHECK_EQUAL(late.command, "length");
    CHECK_EQUAL(late.state, "stopped");
    CHECK(std::string(late.what()).find("because another request is under way ('echo')") != std::string::npos);
    CHECK(!is_there(third));
    CHECK_EQUAL(s.stats().in_flight, 3u);  // the worker still has all three
    CHECK(s.stats().free_nbytes < s.stats().nbytes);
    thrown_by<ResponseTimeout>([&] { s.submit_response("pid", 20); });
    s.go_on();
    CHECK_EQUAL(result_of(third), "5");
    CHECK_EQUAL(s.stats().in_flight, 0u);
    CHECK_EQUAL(s.stats().free_nbytes, s.stats().nbytes);
    CHECK_EQUAL(count_wrong(s, 100, 5), 0);
}

TEST(session_many_a_future_may_be_dropped) {
    Ready& s = shared();
    for (int i = 0; i < 100; ++i) s.submit("echo", Tensor::full(Shape(100), 1.0f));
    CHECK_EQUAL(s.fetch_response("length abc"), "3");
    s.wait_until_ready();
    CHECK_EQUAL(s.stats().in_flight, 0u);
}

TEST(session_many_futures_end_with_the_worker) {
    for (const bool is_fetching : {false, true}) {  // another thread has the role of the consumer, or nobody
        Ready s("dies");
        std::vector<std::future<std::string>> texts;
        std::vector<std::future<Tensor>> tensors;
        std::thread fetching;
        std::string error = "none";
        if (is_fetching) {
            fetching = std::thread([&] {
                try {
                    s.fetch_response("sleep 600", LONG_MS);
                } catch (const WorkerDied&) {
                    error = "WorkerDied";
                }
            });
            while (!s.is_busy()) std::this_thread::yield();
        } else {
            texts.push_back(s.submit_response("sleep 600", LONG_MS));
        }
        for (int i = 0; i < 10; ++i) {
            texts.push_back(s.submit_response("pid", LONG_MS));
            tensors.push_back(s.submit("echo", Tensor::ones(Shape(100)), LONG_MS));
        }
        s.send_request("pid");
        ::kill(worker_pid(s), SIGKILL);
        for (auto& each : texts) {
            CHECK_EQUAL(thrown_by<WorkerDied>([&] { result_of(each); }).exit_code.value(), -SIGKILL);
        }
        for (auto& each : tensors) thrown_by<WorkerDied>([&] { result_of(each); });
        if (is_fetching) {
            fetching.join();
            CHECK_EQUAL(error, "WorkerDied");
        }
        thrown_by<WorkerDied>([&] { s.wait_for_response(LONG_MS); });
        thrown_by<SessionNotStarted>([&] { s.submit("pid"); });
        s.start();
        CHECK_EQUAL(count_wrong(s, 100, 20), 0);
        CHECK_EQUAL(s.stats().free_nbytes, s.stats().nbytes);
    }
}

TEST(session_many_answers_that_came_before_the_death_are_kept) {
    Ready s("last_words");
    std::vector<std::future<std::string>> before;
    for (int i = 0; i < 10; ++i) before.push_back(s.submit_response("length abc", LONG_MS));
    auto dying = s.submit_response("die 3", LONG_MS);
    auto after = s.submit_response("length abc", LONG_MS);
    for (auto& each : before) CHECK_EQUAL(result_of(each), "3");
    CHECK_EQUAL(thrown_by<WorkerDied>([&] { result_of(dying); }).exit_code.value(), 3);
    thrown_by<WorkerDied>([&] { result_of(after); });
}

TEST(session_many_futures_end_with_the_session) {
    std::vector<std::future<std::string>> waiting;
    {
        Ready s("closes");
        waiting.push_back(s.submit_response("sleep 600", LONG_MS));
        for (int i = 0; i < 20; ++i) waiting.push_back(s.submit_response("pid", LONG_MS));
    }
    for (auto& each : waiting) {
        CHECK(is_there(each));
        thrown_by<SessionNotStarted>([&] { each.get(); });
    }
    waiting.clear();
    Ready s("exits_full");
    for (int i = 0; i < 20; ++i) waiting.push_back(s.submit_response("length abc", LONG_MS));
    CHECK(s.please_exit(LONG_MS));
    for (auto& each : waiting) {
        CHECK(is_there(each));
        CHECK_EQUAL(each.get(), "3");
    }
    CHECK_EQUAL(count_semaphores(), 0u);
}

TEST(session_many_threads_of_every_kind_end_with_close) {
    for (int round = 0; round < 3; ++round) {
        Ready s("closed_full");
        std::atomic<int> ended{0};
        std::vector<std::thread> threads;
        for (int thread = 0; thread < 4; ++thread) {
            threads.emplace_back([&, thread] {
                try {
                    while (true) {
                        if (thread % 2) s.fetch_response("length abc", LONG_MS);
                        else count_wrong(s, 100, 40);
                    }
                } catch (const SessionNotStarted&) {
                    ++ended;
                }
            });
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20 * round));  // whenever it is closed, all end
        s.close();
        for (auto& each : threads) each.join();
        CHECK_EQUAL(ended.load(), 4);
    }
}

TEST(session_many_killed_at_any_moment_with_all_in_flight) {
    const char* wanted = std::getenv("TR_TEST_KILLS");
    const int kills = wanted ? std::atoi(wanted) : 5;
    Ready s("killed_full", signed_options());
    std::mt19937 random(18);
    for (int number = 0; number < kills; ++number) {
        const pid_t pid = worker_pid(s);
        std::thread killer([&, delay = std::chrono::microseconds(random() % 30'000)] {
            std::this_thread::sleep_for(delay);
            ::kill(pid, SIGKILL);
        });
        std::vector<std::pair<float, std::future<Tensor>>> waiting;
        std::size_t answered = 0, died = 0, sent = 0;
        try {
            while (true) {
                const float value = static_cast<float>(sent);
                waiting.emplace_back(value, s.submit(sent % 2 ? "lend" : "echo", Tensor::full(Shape(3000), value), LONG_MS));
                ++sent;
            }
        } catch (const WorkerDied&) {
        } catch (const SessionNotStarted&) {  // the thread of the futures was faster to notice it
        }
        killer.join();
        for (auto& [value, each] : waiting) {
            try {
                CHECK(all_equal(result_of(each), value));
                ++answered;
            } catch (const WorkerDied&) {
                ++died;
            }
        }
        CHECK_EQUAL(answered + died, sent);
        CHECK(died <= 32);
        s.start();
        CHECK_EQUAL(s.fetch_response("length abc", LONG_MS), "3");
        CHECK_EQUAL(s.stats().in_flight, 0u);
    }
}

TEST(session_many_nothing_in_flight_wakes_nobody) {
    if (IS_THREAD_SANITIZER) return;  // which has a thread of its own
    Ready s("sleeps");
    CHECK_EQUAL(count_wrong(s, 50, 10), 0);
    // In more than a second: what looks now and then does so once a second. On a busy machine a thread may come late to its
    // sleep, so another second may be needed.
    long wakes = 1;
    for (int tries = 0; tries < 20 && wakes != 0; ++tries) {
        const long before = count_wakes_of_others();
        std::this_thread::sleep_for(std::chrono::milliseconds(1300));
        wakes = count_wakes_of_others() - before;
    }
    CHECK_EQUAL(wakes, 0);
}

TEST(session_many_quick_requests_do_not_wait_for_a_slow_one) {
    SessionOptions options = signed_options();
    options.env["TR_TEST_THREADS"] = "2";
    Ready s("slow", options);
    const std::string mark = std::string(std::getenv("TR_TEST_FOLDER")) + "/go_on";
    auto slow = s.submit_response("wait_for " + mark, LONG_MS);
    CHECK_EQUAL(count_wrong(s, 1000, 20), 0);  // the answers come in another order than the requests
    for (int i = 0; i < 50; ++i) CHECK(all_equal(s.calculate("echo", Tensor::full(Shape(50), 1.0f * static_cast<float>(i))), static_cast<float>(i)));
    CHECK(!is_there(slow));
    CHECK_EQUAL(s.stats().in_flight, 1u);
    std::ofstream(mark).flush();
    CHECK_EQUAL(result_of(slow), "there");
    CHECK_EQUAL(s.stats().rejected, 0u);
    std::filesystem::remove(mark);
}

TEST(session_many_cancel_of_a_later_request_of_the_same_slot_holds) {
    SessionOptions options;
    options.env["TR_TEST_THREADS"] = "2";
    Ready s("same_slot", options);
    const std::string folder = std::getenv("TR_TEST_FOLDER"), mark = folder + "/go_on", written = folder + "/written";
    auto first = s.submit_response("wait_for " + mark, LONG_MS);  // in slot 0
    CHECK_EQUAL(count_wrong(s, wire::ring_slots - 2, 20), 0);
    auto second = s.submit_response("wait_for " + mark, LONG_MS);  // so no thread of the worker is free
    auto later = s.submit_response("write " + written, LONG_MS);   // in slot 0 again
    CHECK(later.cancel());
    CHECK(!first.cancel());  // its handler was called
    CHECK(later.cancel());
    thrown_by<RequestCancelled>([&] { result_of(later); });
    std::ofstream(mark).flush();
    CHECK_EQUAL(result_of(first), "there");
    CHECK_EQUAL(result_of(second), "there");
    CHECK_EQUAL(s.fetch_response("length abc"), "3");
    CHECK(!exists(written));
    std::filesystem::remove(mark);
}

TEST(session_many_what_was_cancelled_says_so) {
    Future<std::string> outliving;
    CHECK(!outliving.cancel());
    {
        Stopped s("cancels");
        Tensor loan = s.empty<float>(Shape(100));
        auto tensor = s.submit("echo", loan, LONG_MS);
        auto text = s.submit_response("length abc", LONG_MS);
        outliving = s.submit_response("length abcd", LONG_MS);
        std::future<std::string> plain = s.submit_response("length abcde", LONG_MS);  // a future as any other
        CHECK(tensor.cancel() && text.cancel());
        CHECK(is_there(tensor) && is_there(text) && !is_there(outliving));
        const auto error = thrown_by<RequestCancelled>([&] { tensor.get(); });
        CHECK_EQUAL(error.command, "echo");
        CHECK_EQUAL(error.error_type, "RequestCancelled");
        CHECK_EQUAL(s.stats().in_flight, 4u);  // the worker has not come to them
        s.go_on();
        CHECK_EQUAL(result_of(plain), "5");
        CHECK_EQUAL(s.stats().in_flight, 0u);
        CHECK_EQUAL(s.fetch_response("length abcdef"), "6");
        CHECK(tensor.cancel());
        CHECK(!outliving.cancel());
    }
    CHECK(!outliving.cancel());  // nor without a session
    CHECK_EQUAL(result_of(outliving), "4");
}

TEST(session_many_cancels_race_with_answers) {
    Ready s("race");
    for (int round = 0; round < 20; ++round) {
        std::vector<Future<std::string>> waiting;
        for (int i = 0; i < 20; ++i) waiting.push_back(s.submit_response("say_back " + std::to_string(i), LONG_MS));
        for (int i = 19; i >= 0; --i) {
            auto& each = waiting[static_cast<std::size_t>(i)];
            if (each.cancel()) {
                thrown_by<RequestCancelled>([&] { result_of(each); });
                continue;
            }
            try {
                CHECK_EQUAL(result_of(each), std::to_string(i));
            } catch (const RequestCancelled&) {
                // The worker took it at the same moment, and saw the wish: it has said so in place of an answer.
            }
        }
    }
    CHECK_EQUAL(s.fetch_response("length abc"), "3");
    CHECK_EQUAL(s.stats().in_flight, 0u);
}

TEST(session_many_large_tensors_keep_the_budget) {
    SessionOptions options;
    options.budget_nbytes = 16 << 20;
    options.block_ms = LONG_MS;
    Ready s("large", options);
    std::vector<std::future<std::string>> waiting;
    std::uint64_t most = 0;
    for (int i = 0; i < 32; ++i) {  // 128 MiB in all
        const std::string value = std::to_string(i);
        waiting.push_back(s.submit_response("is_first " + value, {Tensor::full(Shape(1 << 20), static_cast<float>(i))}, LONG_MS));
        most = std::max(most, s.stats().nbytes);
    }
    for (auto& each : waiting) CHECK_EQUAL(result_of(each), "True");
    CHECK(most <= *options.budget_nbytes);
    for (int i = 0; i < 8; ++i) s.send_request("length abc");  // nobody takes these answers yet
    CHECK_EQUAL(s.calculate("echo", Tensor::ones(Shape(1 << 20)), LONG_MS).numel(), 1 << 20);
    for (int i = 0; i < 8; ++i) CHECK_EQUAL(s.wait_for_response(), "3");
}

TEST(session_many_long_messages_cross_in_files) {
    Ready s("long", signed_options());
    std::vector<std::future<std::string>> lengths, texts;
    const std::string word(100'000, 'x');
    for (int i = 0; i < 10; ++i) {
        lengths.push_back(s.submit_response("length " + word, LONG_MS));
        texts.push_back(s.submit_response("text 50000", LONG_MS));
    }
    for (auto& each : lengths) CHECK_EQUAL(result_of(each), "100000");
    for (auto& each : texts) CHECK_EQUAL(result_of(each).size(), 100'000u);
    for (const auto& entry : std::filesystem::directory_iterator(s.session_dir())) {
        CHECK(entry.path().extension() != ".spill");
    }
}

TEST(session_many_what_the_worker_has_not_signed_is_ignored) {
    Ready s("forged", signed_options());
    CHECK_EQUAL(s.fetch_response("length abc"), "3");  // number 1, in the first slot
    ::kill(worker_pid(s), SIGSTOP);
    auto waiting = s.submit_response("length abcd", LONG_MS);
    {
        std::fstream file(s.session_dir() + "/responses.ring", std::ios::in | std::ios::out | std::ios::binary);
        const std::string line = "{\"seq\":       2,\"command\":\"length\",\"result\":\"forged\",\"timestamp\":1}\n";
        file.seekp(4096 + 4096 + 16);
        file.write(line.data() + 16, static_cast<std::streamsize>(line.size() - 16));
        file.seekp(4096 + 4096 + 8);
        file.write(line.data() + 8, 8);
    }
    CHECK(waiting.wait_for(std::chrono::milliseconds(1500)) == std::future_status::timeout);  // looked at, and left alone
    CHECK_EQUAL(s.stats().rejected, 1u);
    ::kill(worker_pid(s), SIGCONT);
    CHECK_EQUAL(result_of(waiting), "4");
    CHECK_EQUAL(s.stats().rejected, 1u);
}

TEST(session_many_forks_leave_the_futures_to_the_parent) {
    Ready s("forked_full");
    std::vector<std::future<Tensor>> waiting;
    for (int i = 0; i < 20; ++i) waiting.push_back(s.submit("echo", Tensor::full(Shape(100), 1.0f), LONG_MS));
    CHECK(holds_in_child([&] {
        thrown_by<SessionNotStarted>([&] { s.submit("echo", Tensor::ones(Shape(3))); });
        s.close();
    }));
    for (auto& each : waiting) CHECK(all_equal(result_of(each), 1));
}
