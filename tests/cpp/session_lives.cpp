// Tests of how sessions with a Python worker begin and end: in time, by deaths of every kind, and in forks.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "session.hpp"

TEST(session_ends_without_a_trace) {
    std::string directory;
    Tensor kept;
    {
        Ready s("trace");
        directory = s.session_dir();
        CHECK_EQUAL(count_semaphores(), 0u);  // their names are gone once both sides have them open
        kept = s.calculate("echo", Tensor::full(Shape(10), 3.0f));
        CHECK(s.please_exit(5000, true));
        CHECK(!exists(directory) && !s.is_alive());
        CHECK(s.please_exit());
        thrown_by<SessionNotStarted>([&] { s.send_request("x"); });
        s.start();
        CHECK(s.wait_until_ready(30000));
        CHECK(exists(directory));
    }
    CHECK(!exists(directory));
    CHECK(all_equal(kept, 3));  // views live on
    {
        PythonSession never_ready(worker_script(), "trace", true);
        never_ready.start();
        PythonSession never_started(worker_script(), "trace2", true);
    }
    CHECK(!exists(directory));
    CHECK_EQUAL(count_semaphores(), 0u);
}

TEST(session_waits_end_with_the_service_of_a_worker_whose_process_lives_on) {
    constexpr double forever = std::numeric_limits<double>::infinity();
    Ready s("leaving");
    s.send_tensor(Tensor::full(Shape(10), 3.0f), "kept");
    std::vector<std::thread> waiting;
    std::vector<std::string> texts(3);
    const auto learn = [&](std::size_t number, auto wait) {
        waiting.emplace_back([&texts, number, wait] { texts[number] = thrown_by<WorkerDied>(wait).what(); });
    };
    s.send_request("sleep 0.5");
    for (const std::size_t number : {0u, 1u}) learn(number, [&] { s.fetch_response("leave", forever); });
    learn(2, [&] { for (;;) s.wait_until_ready(forever); });
    for (auto& each : waiting) each.join();
    for (const auto& text : texts) CHECK(text.find("has ended its service, and its process") != std::string::npos);
    CHECK(!s.is_alive() && !s.is_ready() && !s.is_busy() && !s.join(0));
    CHECK_EQUAL(s.wait_for_response(), "slept");  // the answer that came before
    CHECK(!thrown_by<WorkerDied>([&] { s.wait_for_response(forever); }).exit_code);
    s.start();
    CHECK(s.is_alive());
    CHECK(all_equal(s.fetch_tensor("echo kept", 30000), 3));
    CHECK(s.please_exit(30000));
}

TEST(session_error_that_was_answered_is_no_reason_of_a_later_death) {
    Ready s("answered");
    thrown_by<RemoteError>([&] { s.fetch_response("fail nope"); });
    const auto silent = thrown_by<WorkerDied>([&] { s.fetch_response("kill"); });
    CHECK_EQUAL(silent.log_tail, "");
    CHECK(std::string(silent.what()).find("it printed nothing since its last answer") != std::string::npos);
    s.start();
    s.wait_until_ready(30000);
    thrown_by<RemoteError>([&] { s.fetch_response("fail nope"); });
    CHECK_EQUAL(thrown_by<WorkerDied>([&] { s.fetch_response("die 3"); }).log_tail, "these are my last words");
}

TEST(session_timeouts) {
    Ready s("timeouts");
    s.send_request("sleep 0.3");
    const auto error = thrown_by<ResponseTimeout>([&] { s.wait_for_response(20); });
    CHECK_EQUAL(error.command, "sleep");
    CHECK(s.is_busy() && !s.is_ready());
    CHECK_EQUAL(s.wait_for_response(), "slept");
    thrown_by<ResponseTimeout>([&] { s.fetch_response("sleep 0.2", 10); });
    CHECK_EQUAL(s.fetch_response("length abc"), "3");  // what was given up is nobody's answer
    thrown_by<ResponseTimeout>([&] { s.wait_for_response(10); });
    s.send_request("sleep 0.1");
    CHECK(!s.wait_until_ok(1));
    CHECK(s.wait_until_ok(5000));
    s.send_request("sleep 60");
    while (!s.is_busy()) std::this_thread::yield();  // else the wish to exit may take the request's place
    CHECK(!s.please_exit(100, false) && s.is_alive());
    const auto start = Clock::now();
    CHECK(!s.please_exit(100, true) && !s.is_alive());
    CHECK(ms_since(start) < 5000);
}

TEST(session_death_of_the_worker_ends_the_wait) {
    Ready s("deaths");
    s.send_tensor(Tensor::full(Shape(10), 4.0f), "a");
    const Tensor view = s.fetch_tensor("echo a");
    const auto died = thrown_by<WorkerDied>([&] { s.fetch_response("die 3"); });
    CHECK_EQUAL(died.exit_code.value(), 3);
    CHECK(died.log_tail.find("these are my last words") != std::string::npos);
    CHECK(std::string(died.what()).find("these are my last words") != std::string::npos);
    CHECK(all_equal(view, 4) && !s.is_alive());
    thrown_by<SessionNotStarted>([&] { s.fetch_response("pid"); });
    s.start();
    CHECK(s.wait_until_ready(30000));
    CHECK_EQUAL(s.fetch_response("is a 4"), "True");  // the new worker knows the tags
    CHECK_EQUAL(thrown_by<WorkerDied>([&] { s.fetch_response("kill"); }).exit_code.value(), -SIGKILL);
    s.start();
    s.wait_until_ready(30000);
    const pid_t pid = std::stoi(s.fetch_response("pid"));
    ::kill(pid, SIGKILL);
    CHECK(s.join(5000));
    thrown_by<WorkerDied>([&] { s.send_request("pid"); s.wait_for_response(); });
}

TEST(session_death_at_any_moment_is_noticed_within_a_second_and_leaves_nothing) {
    const char* wanted = std::getenv("TR_TEST_KILLS");
    const int kills = wanted ? std::atoi(wanted) : 6;
    std::mt19937 random(4);
    const Tensor tensor = Tensor::full(Shape(50'000), 1.0f);
    for (int number = 0; number < kills; ++number) {
        std::string directory;
        pid_t pid = 0;
        std::vector<Tensor> kept;
        {
            PythonSession s(worker_script(), "moments", true);
            s.start();
            directory = s.session_dir();
            pid = static_cast<pid_t>(detail::read_manifest(directory)->worker->pid);
            const bool is_early = number % 3 == 0;  // while it starts; else while it works
            if (!is_early) CHECK(s.wait_until_ready(30000));
            const auto delay = std::chrono::microseconds(random() % (is_early ? 400'000 : 20'000));
            Clock::time_point killed;
            std::thread killer([&] {
                std::this_thread::sleep_for(delay);
                killed = Clock::now();
                ::kill(pid, SIGKILL);
            });
            std::optional<int> code;
            double noticed_ms = 0;
            try {
                CHECK(s.wait_until_ready(30000));
                for (int i = 0;; ++i) {
                    kept.push_back(s.calculate("lend", tensor));
                    if (kept.size() > 4) kept.erase(kept.begin(), kept.begin() + 3);
                    Tensor loan = s.empty<float>(Shape(1000 + i % 5 * 1000));
                    loan.fill(1);
                    s.send_tensor(loan, "a");
                    s.fetch_response("is a 1");
                }
            } catch (const WorkerDied& error) {
                const Clock::time_point now = Clock::now();
                killer.join();
                noticed_ms = std::chrono::duration<double, std::milli>(now - killed).count();
                code = error.exit_code;
            }
            CHECK_EQUAL(code.value(), -SIGKILL);
            CHECK(noticed_ms < 1000);
        }
        CHECK(!exists(directory) && !is_running(pid));
        CHECK_EQUAL(count_semaphores(), 0u);
        for (const Tensor& each : kept) CHECK(all_equal(each, 1));
    }
}

TEST(session_death_while_it_is_asked_to_exit) {
    std::mt19937 random(6);
    for (int number = 0; number < 4; ++number) {
        Ready s("exits");
        const std::string directory = s.session_dir();
        const pid_t pid = std::stoi(s.fetch_response("pid"));
        s.send_request("sleep 60");
        std::thread killer([&] {
            std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
            ::kill(pid, SIGKILL);
        });
        const auto start = Clock::now();
        s.please_exit(5000, true);
        CHECK(ms_since(start) < 1000);
        killer.join();
        CHECK(!exists(directory) && !is_running(pid));
    }
    CHECK_EQUAL(count_semaphores(), 0u);
}

TEST(session_death_by_a_fatal_error_shows_how_the_dump_begins) {
    for (const char* threads : {"2", "60"}) {  // 60 take more than 16 KiB
        Ready s("aborts");
        const auto died = thrown_by<WorkerDied>([&] { s.fetch_response(std::string("abort ") + threads); });
        CHECK(died.log_tail.find("these are my last words\nFatal Python error: Aborted\n") != std::string::npos);
        CHECK(died.log_tail.find(" in abort\n") != std::string::npos);  // of all frames, that in which the handler is
        CHECK(died.log_tail.find("/tr_mmap/base/") == std::string::npos);
        CHECK(std::count(died.log_tail.begin(), died.log_tail.end(), '\n') <= 19);
    }
}

TEST(session_death_before_ready) {
    const std::string script = std::string(std::getenv("TR_TEST_FOLDER")) + "/broken.py";
    std::ofstream(script) << "raise SystemExit('no such luck')\n";
    PythonSession s(script, "broken", true);
    s.start();
    const auto died = thrown_by<WorkerDied>([&] { s.wait_until_ready(30000); });
    CHECK_EQUAL(died.exit_code.value(), 1);
    CHECK(died.log_tail.find("no such luck") != std::string::npos);
    std::ofstream(script) << "import no_such_module\n";
    s.start();
    const auto lost = thrown_by<WorkerDied>([&] { s.wait_until_ready(30000); });
    CHECK(std::string(lost.what()).find("TR_PYTHON") != std::string::npos);  // most likely it is the wrong Python
    thrown_by<ScriptNotFound>([] { PythonSession("/no/such/script.py", "none").start(); });
    SessionOptions options;
    options.python = "/no/such/python";
    PythonSession without(worker_script(), "none", true, options);
    CHECK_EQUAL(thrown_by<ScriptNotFound>([&] { without.start(); }).path, "/no/such/python");
}

TEST(session_death_names_the_program_that_was_no_python) {
    const std::string folder = std::getenv("TR_TEST_FOLDER");
    const auto death_of = [&](const std::string& python, const std::string& script) {
        SessionOptions options;
        options.python = python;
        PythonSession s(script, "no_python", true, options);
        s.start();
        return std::string(thrown_by<WorkerDied>([&] { s.fetch_response("hello there", 30000); }).what());
    };
    const std::string empty = folder + "/empty.py", printing = folder + "/printing.py";
    std::ofstream(empty).flush();
    std::ofstream(printing) << "print('nothing to do')\n";
    for (const std::string& script : {std::string("default"), worker_script()}) {
        for (const char* python : {"true", "/bin/sh"}) {
            const std::string text = death_of(python, script);
            CHECK(text.find("it was run by '" + std::string(python) + "'") != std::string::npos);
            CHECK(text.find("TR_PYTHON") != std::string::npos);
        }
    }
    const std::string python = std::getenv("TR_PYTHON");
    CHECK(death_of(python, empty).find("it printed nothing\nit was run by '" + python + "'") != std::string::npos);
    CHECK(death_of(python, printing).find("it was run by") == std::string::npos);
    Ready s("no_python");
    s.terminate();
    const std::string text = thrown_by<WorkerDied>([&] { s.fetch_response("hello there"); }).what();
    CHECK(text.find("it was run by") == std::string::npos);  // it was ready: no interpreter is to blame
}

TEST(session_terminate_ends_the_whole_tree) {
    Ready s("tree");
    const pid_t grandchild = std::stoi(s.fetch_response("child yes"));
    CHECK(is_running(grandchild));
    std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        s.terminate();
    });
    s.send_request("sleep 60");
    const auto start = Clock::now();
    thrown_by<WorkerDied>([&] { s.wait_for_response(30000); });
    CHECK(ms_since(start) < 4000);
    other.join();
    CHECK(!is_running(grandchild));
    s.start();
    s.wait_until_ready(30000);
    const pid_t orphan = std::stoi(s.fetch_response("child no"));
    thrown_by<WorkerDied>([&] { s.fetch_response("die 0"); });
    CHECK(!is_running(orphan));  // what a dead worker left behind
}

TEST(session_in_use) {
    const auto in_use = thrown_by<SessionInUse>([] { PythonSession("default", shared().session_id()).start(); });
    CHECK_EQUAL(in_use.pid, ::getpid());
    thrown_by<SessionInUse>([] { shared().start(); });
    CHECK_EQUAL(shared().fetch_response("length abc"), "3");
}

TEST(session_at_its_budget_does_not_wait_for_a_worker_that_dies) {
    SessionOptions options;
    options.budget_nbytes = 600'000;
    options.block_ms = 60'000;
    Ready s("blocked", options);
    s.send_tensor(Tensor::zeros(Shape(100'000)), "a");
    CHECK_EQUAL(s.fetch_response("keep a"), "kept");
    s.drop_tensor("a");  // which the worker looks at still
    const pid_t pid = std::stoi(s.fetch_response("pid"));
    Clock::time_point killed;
    std::thread killer([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        killed = Clock::now();
        ::kill(pid, SIGKILL);
    });
    thrown_by<WorkerDied>([&] { s.send_tensor(Tensor::zeros(Shape(100'000)), "b"); });
    killer.join();
    CHECK(ms_since(killed) < 1000);
    s.start();
    CHECK(s.wait_until_ready(30000));
    s.send_tensor(Tensor::zeros(Shape(100'000)), "b");  // the dead worker's view is gone, and so is its segment
    CHECK_EQUAL(s.fetch_response("is b 0"), "True");
}

TEST(session_closed_while_a_thread_waits_for_a_request) {
    Ready s("closed");
    std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        s.close();
    });
    thrown_by<SessionNotStarted>([&] { s.wait_for_response(10000); });
    other.join();
}

TEST(session_forks) {
    auto s = std::make_unique<Ready>("forks");
    Tensor view = s->calculate("echo", Tensor::full(Shape(100), 6.0f));
    const pid_t child = ::fork();
    if (child == 0) {
        bool is_right = all_equal(view, 6) && !s->join(500) && !s->join() && !s->please_exit(500);
        is_right = is_right && !s->please_exit(500, false) && !s->is_alive() && !s->new_response();
        s->close();
        s->terminate();
        view = Tensor();
        s.reset();  // does nothing to its parent's session
        ::_exit(is_right ? 0 : 1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(all_equal(s->calculate("echo", Tensor::full(Shape(100), 7.0f)), 7));
    CHECK(all_equal(view, 6));

    int from_child[2], to_child[2];
    CHECK(::pipe(from_child) == 0 && ::pipe(to_child) == 0);
    const pid_t keeper = ::fork();
    if (keeper == 0) {
        char byte;
        const bool is_asked = ::read(to_child[0], &byte, 1) == 1;
        ::_exit(is_asked && all_equal(view, 6) ? 0 : 1);
    }
    view = Tensor();  // gone here, and still there in the child
    for (int i = 0; i < 10; ++i) s->calculate("echo", Tensor::full(Shape(100), 8.0f));
    CHECK(::write(to_child[1], "x", 1) == 1);
    ::waitpid(keeper, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    for (const int fd : {from_child[0], from_child[1], to_child[0], to_child[1]}) ::close(fd);
}

TEST(session_hostile_places_are_refused) {
    const std::string previous = std::getenv("TR_WORKSPACE");
    const std::string place = std::string(std::getenv("TR_TEST_FOLDER")) + "/place";
    ::mkdir(place.c_str(), 0700);
    ::mkdir((place + "/python_session").c_str(), 0700);
    ::chmod((place + "/python_session").c_str(), 0777);
    ::setenv("TR_WORKSPACE", place.c_str(), 1);
    thrown_by<HostilePath>([] { PythonSession().start(); });
    ::chmod(place.c_str(), 0777);
    thrown_by<HostilePath>([] { PythonSession().start(); });
    ::setenv("TR_WORKSPACE", (place + "/no/such").c_str(), 1);
    thrown_by<HostilePath>([] { PythonSession().start(); });
    ::setenv("TR_WORKSPACE", previous.c_str(), 1);
}
